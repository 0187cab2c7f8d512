#!/usr/bin/env bash
# What can only be seen on an NVIDIA GPU: reference values, equal bytes for any number of workers, and how fast it is.
#
#   deploy/cuda/build.sh           first, on any machine: target/cuda/fresco-gpu.tar.xz is what this needs, beside the
#                                  project's files
#   tests/gpu.sh [PART] [cuda:N]   on the machine with the GPU (cuda:0). PART is checks, bench or torch, without it all three;
#                                  or whole: two pictures of 4096x4096 in 20 steps. BIN names another folder, OUT one for what
#                                  was measured, LIMIT the seconds all of it may take (570): what no longer fits is skipped,
#                                  and said
#   tests/gpu.sh --emulated        on any machine: a driver whose one GPU is the CPU (kernels/cuda/host), which is compiled
#                                  first; the checks, and the benches at small sizes as one more of them, slowly
#
# Else builds nothing. Ends with `N passed, M failed`; measurements are printed and are no reason to fail.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
emulated='' parts='checks bench torch'
case "${1-}" in
    --emulated) emulated=yes parts='emulated checks' && shift ;;
    checks | bench | whole | torch) parts=$1 && shift ;;
esac
device=${1:-cuda:0} bin=$(realpath -m "${BIN:-target/cuda/bin}") out=${OUT:-target/cuda/measured}
passed=0 failed=0 skipped=0 running=()
# Seconds for all, and for one program of a check.
limit=${LIMIT:-$([ -n "$emulated" ] && echo 7200 || echo 570)} patience=$([ -n "$emulated" ] && echo 1800 || echo 90)
work=$(mktemp -d)
mkdir -p "$out"

stop() {
    echo "tests/gpu.sh: $1" >&2
    failed=$((failed + 1))
    exit
}

any_alive() {
    local pid
    for pid; do kill -0 "$pid" 2>/dev/null && return; done
    return 1
}

# Ends processes: asked first, then not.
end() {
    local idx
    [ $# -gt 0 ] || return 0
    kill "$@" 2>/dev/null
    for ((idx = 0; idx < 70; idx++)); do
        any_alive "$@" || break
        sleep 0.1
    done
    kill -9 "$@" 2>/dev/null
    wait "$@" 2>/dev/null
    return 0
}

at_end() {
    end "${running[@]}"
    rm -rf "$work"
    echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")" >&3
    exit $((failed + skipped > 0))
}
# Also when it is told to end in the middle of a check, whose output goes to a file.
exec 3>&1
trap at_end EXIT
trap 'trap "" INT TERM; stop "was told to end"' INT TERM

left() { echo $((limit - SECONDS)); }

# Runs a program for as long as it may take, which is no longer than what is left.
bounded() {
    local seconds status=0
    seconds=$(left)
    timeout -k 5 $((seconds > $1 ? $1 : seconds > 1 ? seconds : 1)) "${@:2}" 3>&- &
    running+=($!)
    wait $! || status=$?
    unset 'running[-1]'
    return $status
}

check() {
    local what=$1 start=$SECONDS status=0
    shift
    if [ "$(left)" -lt 5 ]; then
        echo "skipped $what: $limit s are over" && skipped=$((skipped + 1))
        return
    fi
    "$@" >"$work/check" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        echo "ok      $what ($((SECONDS - start)) s)" && passed=$((passed + 1))
    else
        echo "FAILED  $what ($((SECONDS - start)) s, ended with $status)" && failed=$((failed + 1))
        tail -40 "$work/check" | sed 's/^/        /'
    fi
}

# Prints one measurement of `most` seconds; what could not be measured is said, and why.
most=120
measure() {
    local status=0 start=$SECONDS
    if [ "$(left)" -lt 10 ]; then
        echo "not measured: bench $*: $limit s are over" | tee -a "$out/bench.txt"
        return
    fi
    bounded "$most" "$bin/fresco-cuda" bench "$@" --device "$device" >"$work/bench" 2>&1 || status=$?
    {
        cat "$work/bench"
        case "$status" in
            0) ;;
            124 | 137) echo "not measured: bench $*: over $((SECONDS - start)) s" ;;
            *) echo "not measured: bench $*: ended with $status" ;;
        esac
    } | tee -a "$out/bench.txt"
}

if [ -f target/cuda/fresco-gpu.tar.xz ] && [ target/cuda/fresco-gpu.tar.xz -nt "$bin/gpu-tests" ]; then
    mkdir -p "$bin"
    # Not every machine has xz; Python has it built in.
    tar -C "$bin" -xJf target/cuda/fresco-gpu.tar.xz 2>/dev/null || python3 -m tarfile -e target/cuda/fresco-gpu.tar.xz "$bin" ||
        stop "target/cuda/fresco-gpu.tar.xz cannot be unpacked"
fi
for program in fresco fresco-cuda gpu-tests; do
    [ -x "$bin/$program" ] || stop "there is no $bin/$program: run deploy/cuda/build.sh"
done
# CUDA's libraries as Python packages, if the loader does not find them by itself.
libraries=$(python3 -c 'import glob, sys
print(":".join(sorted({path for folder in sys.path for path in glob.glob(folder + "/nvidia/*/lib")})))' 2>/dev/null)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$libraries"
# The tests were built in another folder.
export FRESCO_CUDA=$bin/fresco-cuda FRESCO_REPO=$PWD FRESCO_LOG=info
if [ -n "$emulated" ]; then
    "${CXX:-c++}" -std=c++17 -O3 -march=native -U_FORTIFY_SOURCE -shared -fPIC -Wno-unknown-pragmas kernels/cuda/host/driver.cpp \
        -Wl,-soname,libcuda.so.1 -o "$work/libcuda.so.1" || stop "the emulated driver does not compile"
    ln -s libcuda.so.1 "$work/libcublas.so.13"
    ln -s libcuda.so.1 "$work/libcurand.so.10"
    export LD_LIBRARY_PATH="$work:$LD_LIBRARY_PATH:$PWD/target/cuda/packages/nvidia/cu13/lib"
else
    nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader || stop "nvidia-smi finds no GPU"
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$out/memory.txt" 2>/dev/null 3>&- &
    running+=($!)
fi

tests() { FRESCO_TEST_DEVICE=$1 bounded "$patience" "$bin/gpu-tests" "${@:2}" --test-threads 1; }

# A farm of N workers, a process each, on one GPU; its picture lies in $work/N.png. With `fault` the last worker's GPU is lost
# at that launch, which only an emulated one does on request.
farm() {
    local n_before=${#running[@]} status=0
    draw "$@" || { status=1 && tail -n 20 "$work/serve-$1" "$work"/worker-"$1"-*; }
    end "${running[@]:n_before}"
    running=("${running[@]:0:n_before}")
    return $status
}

draw() {
    local n=$1 fault=${2-} port=$((17400 + $1)) first=${#running[@]} start=$SECONDS idx job
    rm -rf "$work/data-$n" "$work/worker-$n-"* "$work/job-$n" "$work/$n.png"
    "$bin/fresco" serve --workers 0 --listen "127.0.0.1:$port" --data "$work/data-$n" >"$work/serve-$n" 2>&1 3>&- &
    running+=($!)
    for ((idx = 0; idx < n; idx++)); do
        [ -z "$fault" ] || [ "$idx" -lt $((n - 1)) ] || export FRESCO_EMULATED_FAULT=$fault
        "$bin/fresco" worker --device "$device" --coordinator "http://127.0.0.1:$port" --model models/demo \
            --name "gpu-$idx" >"$work/worker-$n-$idx" 2>&1 3>&- &
        running+=($!)
        unset FRESCO_EMULATED_FAULT
    done
    while [ "$(cat "$work/worker-$n-"* | grep -c joined)" -lt "$n" ]; do
        for idx in "${running[@]:first}"; do kill -0 "$idx" 2>/dev/null || { echo "a process ended by itself" && return 1; }; done
        [ $((SECONDS - start)) -lt "$patience" ] && [ "$(left)" -gt 0 ] || { echo "not all of $n workers joined in time" && return 1; }
        sleep 0.5
    done
    bounded "$patience" "$bin/fresco" submit "a deep canyon at sunset with two moons on the left" --size "$size" --steps 4 \
        --seed 7 --coordinator "http://127.0.0.1:$port" --wait --json >"$work/job-$n" || return 1
    job=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["job"])' "$work/job-$n") || return 1
    bounded "$patience" "$bin/fresco" download "$job" --coordinator "http://127.0.0.1:$port" --out "$work/$n.png" || return 1
    # A picture that one worker drew while the others looked on would prove nothing.
    local ranks others
    ranks=$(sed -n "s/.*assigned worker=\([^ ]*\) .*n_ranks=$n .*/\1/p" "$work/serve-$n" | sort -u | wc -l)
    others=$(grep " assigned " "$work/serve-$n" | grep -vc "n_ranks=$n ")
    [ "$ranks" = "$n" ] || { echo "$ranks of $n workers drew it" && return 1; }
    if [ -n "$fault" ]; then
        # Not before the first step is done, and not while the picture is decoded.
        grep " assigned " "$work/serve-$n" | grep "n_ranks=1 " | grep -q "n_steps_done=[1-3]\b" ||
            { echo "launch $fault is not in the midst of the steps" && return 1; }
        kill -0 "${running[-1]}" 2>/dev/null && echo "the worker whose GPU is lost did not leave" && return 1
        grep -q "is lost: its work goes on elsewhere" "$work/worker-$n-$((n - 1))" || { echo "the worker does not say why" && return 1; }
    else
        [ "$others" = 0 ] || { echo "$others parts were of another number of workers" && return 1; }
    fi
    ! grep "took more of the gpu's memory than was counted" "$work/worker-$n-"* || return 1
    # What cannot be seen to be said was not looked at.
    grep -q "a part's memory on the gpu" "$work/worker-$n-0" || { echo "no part's memory was compared" && return 1; }
}

# Passes if a program says `words` and ends or fails as it should.
says() {
    local ending=$1 words=$2 status=0
    bounded "$patience" "${@:3}" >"$work/said" 2>&1 || status=$?
    cat "$work/said"
    [ "$ending" = "$([ "$status" -eq 0 ] && echo ends || echo fails)" ] && grep -q -- "$words" "$work/said"
}

# What no GPU does on request: the benches at sizes for an emulator, and faults.
run_emulated() {
    local bench=("$bin/fresco-cuda" bench) small
    small=(--queries 64 --keys 64 --heads 1 --runs 1 --device "$device")
    check "a bench tells the GPU's memory" says ends "MiB beside" "${bench[@]}" attention "${small[@]}"
    check "a picture is drawn on random weights" says ends "all of it, 1 steps" "${bench[@]}" step --size 32x32 --blocks 2 \
        --heads 1 --kv-ratio 2 --steps 1 --decode --widths 8,8,16,16 --device "$device"
    check "memory that is short is told by need and free" says fails "MiB more are needed, 0 MiB are free" \
        env FRESCO_EMULATED_BYTES=32768 "${bench[@]}" attention "${small[@]}"
    check "a GPU that is lost is told" says fails "failed at attention.*ILLEGAL_ADDRESS, code 700" \
        env FRESCO_EMULATED_FAULT=1 "${bench[@]}" attention "${small[@]}"
}

run_checks() {
    # Of the emulated ones the shortest, which still takes a minute; a block of XL/2 would take the emulator hours.
    local split=split:: blocks=(gpu::)
    [ -z "$emulated" ] || split=split::an_odd_grid blocks=(gpu::values::small gpu::travel)
    check "operations are the CPU's, and what travels keeps its bits" tests "$device" "${blocks[@]}" --nocapture
    check "reference values in f32" tests "$device f32" parity::
    check "ranks in one process give equal bytes" tests "$device" "$split"
    check "one worker process draws a picture" farm 1
    for n in 2 3; do
        check "$n worker processes draw a picture" farm "$n"
        check "its bytes are those of one" cmp "$work/1.png" "$work/$n.png"
    done
    if [ -n "$emulated" ]; then
        check "a worker whose GPU is lost in the midst of a picture leaves" farm 2 300
        check "the picture that goes on elsewhere has the same bytes" cmp "$work/1.png" "$work/2.png"
    fi
    cp "$work/1.png" "$out/gpu.png" 2>/dev/null
}

run_bench() {
    local tokens ratio
    measure device --roofline
    for tokens in 4096 16384 65536; do
        measure attention --queries 65536 --keys "$tokens" --heads 16 --head-width 72 --roofline
    done
    for tokens in 65536 262144; do
        measure attention --queries "$tokens" --keys "$tokens" --heads 1 --head-width 512 --runs 2 --roofline
    done
    for ratio in 1 2; do
        measure block --tokens 65536 --kv-ratio "$ratio" --runs 3 --roofline
    done
    for size in 1024x1024 2048x2048 4096x4096; do
        measure vae --size "$size" --runs 2 --roofline
    done
    for ratio in 1 2; do
        measure step --size 4096x4096 --kv-ratio "$ratio" --steps 2 --decode --roofline
    done
    echo "most memory in use: $(sort -n "$out/memory.txt" | tail -1) MiB" | tee -a "$out/bench.txt"
}

run_whole() {
    local ratio most=$limit
    for ratio in 1 2; do
        measure step --size 4096x4096 --kv-ratio "$ratio" --steps 20 --decode --roofline
    done
}

run_torch() {
    if ! python3 -c 'import torch' 2>/dev/null; then
        echo "there is no PyTorch here to compare with"
    elif [ "$(left)" -lt 60 ]; then
        echo "not compared with PyTorch: $limit s are over"
    else
        bounded "$limit" python3 benches/compare/gpu.py --device "$device" > >(tee "$out/torch.txt") 2>&1
    fi
}

# Rows enough that three workers are quicker than two.
size=$([ -n "$emulated" ] && echo 96x96 || echo 512x512)
for part in $parts; do "run_$part"; done
[ -z "$emulated" ] || echo "nothing was measured"
