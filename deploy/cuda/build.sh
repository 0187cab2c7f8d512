#!/usr/bin/env bash
# Builds `fresco-cuda`, the worker for NVIDIA GPUs, with neither CUDA installed nor a GPU in this machine.
#
#   deploy/cuda/build.sh            target/cuda/bin: fresco-cuda, fresco beside it, and the tests of tests/gpu.sh;
#                                   the same packed, to be carried to a machine with a GPU: target/cuda/fresco-gpu.tar.xz
#   deploy/cuda/build.sh --check    lints it, and fetches nothing
#
# CUDA's compiler and headers come as Python packages into target/cuda (1.5 GB, once). The program runs where an NVIDIA
# driver of CUDA 13.0 (580 or newer) is, and libcublas.so.13 and libcurand.so.10 are found by the loader; the packages
# nvidia-cublas and nvidia-curand have them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

stop() {
    echo "deploy/cuda/build.sh: $1" >&2
    exit 1
}

case "${1-}" in
    "") ;;
    --check) ;;
    --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit ;;
    *) stop "$1 is not understood: --help says what is" ;;
esac
command -v cargo >/dev/null || stop "there is no cargo: install Rust from https://rustup.rs"
command -v cc >/dev/null || stop "there is no C compiler: install one (Debian: apt-get install gcc g++ libc6-dev)"
export CUDARC_CUDA_VERSION=13000
# The oldest architecture fresco runs on; the driver compiles for the GPU it finds.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
if [ "${1-}" = --check ]; then
    # Nothing is linked, so the kernels may be empty; kernels/cuda/check.py compiles ours.
    mkdir -p target/cuda/stand-in/bin
    ln -sf "$PWD/deploy/cuda/nvcc-stand-in" target/cuda/stand-in/bin/nvcc
    export CUDA_HOME=$PWD/target/cuda/stand-in PATH=$PWD/target/cuda/stand-in/bin:$PATH
    exec cargo clippy --locked -p cli -p tests --all-targets --features cli/cuda,tests/cuda -- -D warnings
fi
command -v c++ >/dev/null || stop "there is no C++ compiler: install one (Debian: apt-get install g++)"
command -v xz >/dev/null || stop "there is no xz: install it (Debian: apt-get install xz-utils)"
python3 -m pip --version >/dev/null 2>&1 || stop "there is no pip: install it (Debian: apt-get install python3-pip)"

packages=target/cuda/packages links=target/cuda/links
wanted="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.0.35 nvidia-cuda-culibos==13.0.85 nvidia-cublas==13.1.0.3"
if [ "$(cat "$packages/wanted" 2>/dev/null)" != "$wanted" ]; then
    echo "deploy/cuda/build.sh: fetching CUDA's compiler: pip install $wanted"
    rm -rf "$packages"
    # shellcheck disable=SC2086 # a list of words
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$packages" $wanted
    echo "$wanted" >"$packages/wanted"
fi

# The linker looks for names without versions. The driver's library is not there when this is built: an empty one with its
# name stands in, kept though nothing is found in it, and what it lacks is found when the program starts.
mkdir -p "$links"
for name in cudart nvrtc curand cublas cublasLt; do
    versioned=$(find "$PWD/$packages/nvidia/cu13/lib" -name "lib$name.so.*" | sort | head -1)
    [ -n "$versioned" ] || stop "the packages have no lib$name"
    ln -sf "$versioned" "$links/lib$name.so"
done
cc -shared -Wl,-soname,libcuda.so.1 -x c /dev/null -o "$links/libcuda.so"

export CUDA_HOME="$PWD/$packages/nvidia/cu13"
export PATH="$CUDA_HOME/bin:$PATH" CARGO_TARGET_DIR="$PWD/target/cuda/build"
# candle brings kernels for quantized weights, 30 MB that fresco never calls. What is found first is linked, so functions of
# their names come first, which end the program.
manifest=$(cargo metadata --manifest-path crates/cli/Cargo.toml --features cuda --locked --format-version 1 \
    --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" | python3 -c 'import json, sys
print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "candle-kernels"))')
unused=$(sed -n 's/^ *pub fn \([A-Za-z0-9_]*\)(.*/\1/p' "${manifest%/*}/src/ffi.rs")
[ -n "$unused" ] || stop "candle-kernels names no functions any more where it did"
{
    echo 'int puts(const char*); void abort(void);'
    for name in $unused; do echo "void $name(void) { puts(\"$name is not linked\"); abort(); }"; done
} | cc -w -c -x c - -o "$links/unused.o"
printf '#!/bin/sh\nexec cc "%s" "$@"\n' "$PWD/$links/unused.o" >"$links/linker"
chmod +x "$links/linker"
link=(-C "linker=$PWD/$links/linker" -L "native=$PWD/$links")
for word in --allow-shlib-undefined --unresolved-symbols=ignore-all --push-state --no-as-needed; do link+=(-C "link-arg=-Wl,$word"); done
link+=(-C link-arg=-lcuda -C "link-arg=-Wl,--pop-state")
bin=$PWD/target/cuda/bin
mkdir -p "$bin"
executable() {
    python3 -c 'import json, sys
for line in map(json.loads, sys.stdin):
    if line.get("executable") and line["target"]["name"] == sys.argv[1]: print(line["executable"])' "$1"
}
build=(cargo rustc --release --locked --message-format json-render-diagnostics)
strip -o "$bin/fresco-cuda" "$("${build[@]}" -p cli --bin fresco --features cuda -- "${link[@]}" | executable fresco)"
strip -o "$bin/gpu-tests" "$("${build[@]}" -p tests --test suite --features cuda -- "${link[@]}" | executable suite)"
# The program for all else is an ordinary one.
unset CARGO_TARGET_DIR
strip -o "$bin/fresco" "$("${build[@]}" -p cli --bin fresco | executable fresco)"
# The programs are alike, and a large dictionary sees it.
tar -C "$bin" -cf - fresco-cuda gpu-tests fresco | xz -T1 --lzma2=preset=6,dict=192MiB >target/cuda/fresco-gpu.tar.xz
ls -l "$bin" target/cuda/fresco-gpu.tar.xz
# Nothing may be missing but the driver: what else is looked for must be in the libraries named below.
missing=$(comm -23 <(nm -D --undefined-only "$bin/fresco-cuda" | awk '$1 != "w" { print $2 }' | sed 's/@.*//' | sort -u) \
    <({ find "$packages/nvidia/cu13/lib" -name 'lib*.so.*' && ldd "$bin/fresco" | awk '/\// { print $(NF - 1) }' &&
        cc -print-file-name=libstdc++.so.6; } | xargs -n 1 nm -D --defined-only 2>/dev/null |
        awk '{ print $NF }' | sed 's/@.*//' | sort -u) | grep -v '^cu[A-Z]' || true)
[ -z "$missing" ] || stop "the program looks for what no library has: $missing"
! readelf -d "$bin/fresco-cuda" | grep -q libcudart || stop "candle's kernels for quantized weights are linked again, and libcudart with them"
readelf -d "$bin/fresco-cuda" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/needs \1/p'
# What goes to the machine with the GPU: the project's files as git knows them, and the archive. tests/gpu.sh promises its size.
carried=$({ git ls-files -z --cached --others --exclude-standard && printf 'target/cuda/fresco-gpu.tar.xz\0'; } |
    xargs -0 stat -c %s -- 2>/dev/null | awk '{ bytes += $1 } END { print int(bytes / 1048576 + 0.999) }' || true)
echo "to be carried: $carried MiB"
[ "$carried" -le 64 ] || stop "the project's files and the archive are $carried MiB, over the 64 that are carried at once"
