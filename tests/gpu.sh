#!/usr/bin/env bash
# What can only be seen on an NVIDIA GPU: reference values, equal bytes for any number of workers, and how fast it is.
#
#   deploy/cuda/build.sh     first, on any machine: target/cuda/fresco-gpu.tar.xz is what this needs, beside the project's files
#   tests/gpu.sh [cuda:N]    on the machine with the GPU (cuda:0); BIN names another folder, OUT one for what was measured
#   tests/gpu.sh --emulated  on any machine: a driver whose one GPU is the CPU (kernels/cuda/host), which is compiled
#                            first; everything but the measurements, slowly
#
# Else builds nothing. Ends with `N passed, M failed`; measurements are printed and are no reason to fail.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
emulated=
if [ "${1-}" = --emulated ]; then
    emulated=yes
    shift
fi
device=${1:-cuda:0} bin=${BIN:-target/cuda/bin} out=${OUT:-target/cuda/measured}
passed=0 failed=0 running=()
work=$(mktemp -d)
mkdir -p "$out"

stop() {
    echo "tests/gpu.sh: $1" >&2
    exit 1
}

check() {
    local what=$1 start=$SECONDS
    shift
    if "$@" >"$work/check" 2>&1; then
        echo "ok      $what ($((SECONDS - start)) s)" && passed=$((passed + 1))
    else
        echo "FAILED  $what ($((SECONDS - start)) s)" && tail -40 "$work/check" | sed 's/^/        /' && failed=$((failed + 1))
    fi
}

# Prints one measurement; what could not be measured is said, and why.
measure() {
    timeout 120 "$bin/fresco-cuda" bench "$@" --device "$device" 2>&1 | tail -1 | tee -a "$out/bench.txt"
}

clean_up() {
    [ "${#running[@]}" -eq 0 ] || kill "${running[@]}" 2>/dev/null
    wait
    rm -rf "$work"
}
trap clean_up EXIT

if [ -f target/cuda/fresco-gpu.tar.xz ] && [ target/cuda/fresco-gpu.tar.xz -nt "$bin/gpu-tests" ]; then
    mkdir -p "$bin"
    tar -C "$bin" -xJf target/cuda/fresco-gpu.tar.xz || stop "target/cuda/fresco-gpu.tar.xz cannot be unpacked"
fi
for program in fresco fresco-cuda gpu-tests; do
    [ -x "$bin/$program" ] || stop "there is no $bin/$program: run deploy/cuda/build.sh"
done
# CUDA's libraries as Python packages, if the loader does not find them by itself.
libraries=$(python3 -c 'import glob, sys
print(":".join(sorted({path for folder in sys.path for path in glob.glob(folder + "/nvidia/*/lib")})))' 2>/dev/null)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$libraries"
export FRESCO_CUDA=$PWD/$bin/fresco-cuda
if [ -n "$emulated" ]; then
    "${CXX:-c++}" -std=c++17 -O3 -march=native -U_FORTIFY_SOURCE -shared -fPIC -Wno-unknown-pragmas kernels/cuda/host/driver.cpp \
        -Wl,-soname,libcuda.so.1 -o "$work/libcuda.so.1" || stop "the emulated driver does not compile"
    ln -s libcuda.so.1 "$work/libcublas.so.13"
    ln -s libcuda.so.1 "$work/libcurand.so.10"
    export LD_LIBRARY_PATH="$work:$LD_LIBRARY_PATH:$PWD/target/cuda/packages/nvidia/cu13/lib"
else
    nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader || stop "nvidia-smi finds no GPU"
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$out/memory.txt" 2>/dev/null &
    running+=($!)
fi

# Of the emulated ones the shortest, which still takes a minute.
split=$([ -n "$emulated" ] && echo split::an_odd_grid || echo split::)
# A block of XL/2 would take the emulator hours.
[ -n "$emulated" ] || FRESCO_TEST_DEVICE=$device check "a block in f32 and bf16 is the CPU's" "$bin/gpu-tests" gpu:: --nocapture
FRESCO_TEST_DEVICE="$device f32" check "reference values in f32" "$bin/gpu-tests" parity:: --test-threads 1
FRESCO_TEST_DEVICE=$device check "ranks in one process give equal bytes" "$bin/gpu-tests" "$split" --test-threads 1

# A farm of N workers, a process each, on one GPU; its picture lies in $work/N.png.
farm() {
    local n=$1 port=$((17400 + $1)) idx pids=()
    "$bin/fresco" serve --workers 0 --listen "127.0.0.1:$port" --data "$work/data-$n" >"$work/serve-$n" 2>&1 &
    pids+=($!)
    for ((idx = 0; idx < n; idx++)); do
        "$bin/fresco" worker --device "$device" --coordinator "http://127.0.0.1:$port" --model models/demo \
            --name "gpu-$idx" >"$work/worker-$n-$idx" 2>&1 &
        pids+=($!)
    done
    running+=("${pids[@]}")
    for ((idx = 0; idx < 120; idx++)); do
        [ "$(cat "$work/worker-$n-"* | grep -c joined)" -lt "$n" ] || break
        sleep 0.5
    done
    "$bin/fresco" submit "a deep canyon at sunset with two moons on the left" --size "$size" --steps 4 --seed 7 \
        --coordinator "http://127.0.0.1:$port" --wait --json >"$work/job-$n" || { cat "$work"/worker-"$n"-*; return 1; }
    local job
    job=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["job"])' "$work/job-$n") || return 1
    "$bin/fresco" download "$job" --coordinator "http://127.0.0.1:$port" --out "$work/$n.png" || return 1
    kill "${pids[@]}" 2>/dev/null
    wait "${pids[@]}" 2>/dev/null
    return 0
}
export FRESCO_LOG=info
size=$([ -n "$emulated" ] && echo 64x64 || echo 512x512)
check "one worker process draws a picture" farm 1
for n in 2 3; do
    check "$n worker processes draw a picture" farm "$n"
    check "its bytes are those of one" cmp "$work/1.png" "$work/$n.png"
done
cp "$work/1.png" "$out/gpu.png" 2>/dev/null

if [ -n "$emulated" ]; then
    echo "$passed passed, $failed failed; nothing was measured"
    exit $((failed > 0))
fi
measure device
for tokens in 4096 16384 65536; do
    measure attention --queries 65536 --keys "$tokens" --heads 16 --head-width 72
done
measure attention --queries 65536 --keys 65536 --heads 1 --head-width 512
for ratio in 1 2; do
    measure block --tokens 65536 --kv-ratio "$ratio" --runs 3
done
for size in 1024x1024 2048x2048 4096x4096; do
    measure vae --size "$size" --runs 3
done
if python3 -c 'import torch' 2>/dev/null; then
    timeout 150 python3 benches/compare/gpu.py --device "$device" 2>&1 | tee "$out/torch.txt"
else
    echo "there is no PyTorch here to compare with"
fi
echo "most memory in use: $(sort -n "$out/memory.txt" | tail -1) MiB" | tee -a "$out/bench.txt"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
