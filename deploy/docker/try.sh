#!/usr/bin/env bash
# Builds the images twice, which are to be the same, and draws a picture with them, held as the chart's securityContext
# holds them: a coordinator and two workers in containers of runc, each in namespaces of its own, joined by a bridge in a
# network that ends here.
#
#   sudo deploy/docker/try.sh                 programs from target/release; BINARIES names another folder
#
# SECCOMP names the seccomp profile to hold them by (/usr/share/containers/seccomp.json).
#
# Needs root, since it makes network namespaces, but no daemon and no registry. Leaves nothing behind but the tools it installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binaries=${BINARIES:-target/release}
seccomp=${SECCOMP:-/usr/share/containers/seccomp.json}
network=10.89.77
containers=(fresco-coordinator fresco-worker-0 fresco-worker-1)
work=$(mktemp -d)
passed=0 failed=0

stop() {
    echo "deploy/docker/try.sh: $1" >&2
    exit 1
}

check() {
    local what=$1
    shift
    if "$@" >"$work/check" 2>&1; then
        echo "ok      $what" && passed=$((passed + 1))
    else
        echo "FAILED  $what" && sed 's/^/        /' "$work/check" && failed=$((failed + 1))
    fi
}

clean_up() {
    local name
    for name in "${containers[@]}"; do
        runc delete --force "$name" 2>/dev/null || true
        ip netns delete "$name" 2>/dev/null || true
    done
    ip netns delete fresco-client 2>/dev/null || true
    for name in coordinator worker; do
        buildah rm "fresco-try-$name" >/dev/null 2>&1 || true
        buildah rmi "fresco-try/$name:dev" >/dev/null 2>&1 || true
    done
    rm -rf "$work"
}

[ "$(id -u)" = 0 ] || stop "only root can make network namespaces: sudo deploy/docker/try.sh"
for tool in buildah runc ip; do
    if ! command -v "$tool" >/dev/null; then
        command -v apt-get >/dev/null || stop "there is no $tool: install it"
        echo "deploy/docker/try.sh: installing $tool: apt-get install"
        apt-get install --yes --no-install-recommends "${tool/#ip/iproute2}" >/dev/null
    fi
done
trap clean_up EXIT
clean_up && mkdir "$work"

build() {
    deploy/docker/build.sh --with buildah --prefix fresco-try/ --from-binaries "$binaries" >"$work/build" 2>&1 || { cat "$work/build"; stop "no images"; }
}

ids() {
    for image in coordinator worker; do
        buildah inspect --type image --format "$image {{.FromImageID}}{{\"\n\"}}" "fresco-try/$image:dev"
    done
}

# The second time in a store that is empty, so that nothing of the first is taken for it; both as of one commit, though
# another should be made meanwhile.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH REVISION=tried
build
ids >"$work/ids"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/"{store,run} >"$work/storage.conf"
(export CONTAINERS_STORAGE_CONF=$work/storage.conf && build && ids >"$work/ids-again")
check "images that are built again are the same" diff "$work/ids" "$work/ids-again"

# The bridge is the client's, so nothing of this is seen outside.
ip netns add fresco-client
ip -n fresco-client link add bridge type bridge
ip -n fresco-client address add "$network.1/24" dev bridge
ip -n fresco-client link set bridge up
ip -n fresco-client link set lo up
for idx in "${!containers[@]}"; do
    name=${containers[idx]}
    ip netns add "$name"
    ip -n fresco-client link add "to-$idx" type veth peer name eth0 netns "$name"
    ip -n fresco-client link set "to-$idx" master bridge up
    ip -n "$name" address add "$network.$((idx + 2))/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
done

declare -A rootfs process
for image in coordinator worker; do
    buildah from --name "fresco-try-$image" "fresco-try/$image:dev" >/dev/null
    rootfs[$image]=$(buildah mount "fresco-try-$image")
done

start() {
    local name=$1 image=$2
    shift 2
    mkdir "$work/$name"
    buildah inspect --type image "fresco-try/$image:dev" | python3 deploy/docker/bundle.py "$work/$name" --rootfs "${rootfs[$image]}" --network "$name" \
        --seccomp "$seccomp" "$@"
    runc run --bundle "$work/$name" "$name" >"$work/$name/log" 2>&1 </dev/null &
    process[$name]=$!
}

says() {
    for _ in $(seq 300); do
        grep -q "$2" "$work/$1/log" && return
        sleep 0.1
    done
    cat "$work/$1/log" && return 1
}

fresco() {
    ip netns exec fresco-client "$binaries/fresco" "$@"
}

inside() {
    local name=$1
    shift
    runc exec "$name" "$@"
}

# Within ten seconds, and by itself: who is killed ends with 137.
ends_well() {
    local status=0
    for _ in $(seq 100); do
        if ! kill -0 "${process[$1]}" 2>/dev/null; then
            wait "${process[$1]}" || status=$?
            echo "$1 ended with $status" && return "$status"
        fi
        sleep 0.1
    done
    cat "$work/$1/log" && return 1
}

# Process 1 of a container ignores signals it did not ask for, so whether it ends is worth a look.
is_told_to_end() {
    runc kill "$1" TERM && ends_well "$1"
}

# The worker's end is its container's, which takes the hook along (137) where that has not ended yet.
drains() {
    local status=0
    inside "$1" /usr/bin/fresco worker drain --wait || status=$?
    [ "$status" -eq 0 ] || [ "$status" -eq 137 ] || return 1
    ends_well "$1"
}

pid_of() {
    runc state "$1" | sed -n 's/.*"pid": \([0-9]*\).*/\1/p'
}

of_init() {
    local field=$1 wanted=$2 pid
    pid=$(pid_of "$3")
    grep -P "^$field:\t$wanted(\s|$)" "/proc/$pid/status" || { grep "^$field" "/proc/$pid/status" && return 1; }
}

cannot_write() {
    # Fields 5 and 6 of a mount are its place and its options.
    awk '$5 == "/" && $6 ~ /(^|,)ro(,|$)/ { found = 1 } END { exit !found }' "/proc/$(pid_of "$1")/mountinfo"
}

export FRESCO_COORDINATOR=http://$network.2:7400
common=(--env FRESCO_STATUS=0.0.0.0:7480 --env FRESCO_LOG=info)
start fresco-coordinator coordinator "${common[@]}"
check "the coordinator starts" says fresco-coordinator "coordinating on"
for idx in 0 1; do
    name=fresco-worker-$idx
    address=$network.$((idx + 3))
    start "$name" worker "${common[@]}" --env "FRESCO_COORDINATOR=$FRESCO_COORDINATOR" \
        --env "FRESCO_WORKER_NAME=$name" --env FRESCO_WORKER_LISTEN=0.0.0.0:7401 \
        --env "FRESCO_ADVERTISE=http://$address:7401" --env FRESCO_MODEL=/usr/share/fresco/models/demo
    check "$name starts and joins" says "$name" "joined"
done
for name in "${containers[@]}"; do
    check "$name runs as 65532" of_init Uid 65532 "$name"
    check "$name has no capability" of_init CapEff 0000000000000000 "$name"
    check "$name can get no privileges" of_init NoNewPrivs 1 "$name"
    if [ -e "$seccomp" ]; then
        check "$name runs under the engines' seccomp profile" of_init Seccomp 2 "$name"
    else
        echo "skipped $name under the engines' seccomp profile: $seccomp is not here"
    fi
    check "$name cannot write to its files" cannot_write "$name"
done

picture=("snowy mountains at sunset with a ringed planet on the right" --size 256x256 --steps 8 --seed 7)
draw() {
    local job
    job=$(fresco submit "${picture[@]}") && fresco wait "$job" && fresco download "$job" --out "$1" --force
}
check "a picture is drawn" draw "$work/farm.png"
check "both workers had a share of it" grep -l "begins" "$work"/fresco-worker-[01]/log
check "the same is drawn alone" "$binaries/fresco" render "${picture[@]}" --model models/demo --out "$work/alone.png"
check "its bytes are those of one process" cmp "$work/farm.png" "$work/alone.png"
hash=$("$binaries/fresco" model verify models/demo | sed -n 's/^sha256 //p')
check "the chart's init container finds the demo model, by name too" inside fresco-worker-0 /usr/bin/fresco model verify demo --sha256 "$hash"
check "the chart's preStop drains a worker, which ends" drains fresco-worker-1
check "a picture is drawn by the other" draw "$work/again.png"
check "its bytes are the same" cmp "$work/again.png" "$work/alone.png"
check "a worker that is told to end does" is_told_to_end fresco-worker-0
check "a coordinator that is told to end does" is_told_to_end fresco-coordinator

for image in coordinator worker; do
    bytes=$(du --summarize --bytes "${rootfs[$image]}" | cut -f1)
    packed=$(tar --create --directory "${rootfs[$image]}" . | gzip | wc --bytes)
    echo "size    $image: $((bytes / 1000)) kB, $((packed / 1000)) kB compressed"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
