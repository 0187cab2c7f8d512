#!/usr/bin/env bash
# Builds the images of a farm with docker, podman or buildah, whichever is there.
#
#   deploy/docker/build.sh                                       fresco/coordinator:dev, fresco/worker:dev
#   deploy/docker/build.sh --prefix registry.example.org/studio/fresco- --tag 0.1.0
#   deploy/docker/build.sh --from-binaries target/release        packs programs that are built already
#
# Without --from-binaries the programs are built in an image of Rust, which is fetched from a registry. With it nothing
# is fetched; they run wherever this machine's C runtime does, since it goes along.
#
# Equal sources and an equal Rust give equal images: files have the time of the last commit, or of SOURCE_DATE_EPOCH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
prefix=fresco/ tag=dev binaries=

stop() {
    echo "deploy/docker/build.sh: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case "$1" in
        --prefix | --tag | --from-binaries) [ $# -gt 1 ] || stop "$1 wants a value" ;;&
        --prefix) prefix=$2 && shift ;;
        --tag) tag=$2 && shift ;;
        --from-binaries) binaries=$2 && shift ;;
        --help) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0" && exit ;;
        *) stop "$1 is not understood: --help tells what is" ;;
    esac
    shift
done

epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH=$epoch
if docker info >/dev/null 2>&1; then
    build=(docker build)
elif command -v podman >/dev/null; then
    build=(podman build --timestamp "$epoch")
elif command -v buildah >/dev/null; then
    # It needs neither a daemon nor namespaces of its own.
    build=(buildah bud --isolation chroot --timestamp "$epoch")
else
    stop "there is neither a docker that answers, nor podman, nor buildah: install one of them"
fi

context=()
if [ -n "$binaries" ]; then
    rm -rf target/images
    deploy/docker/layout "$binaries" target/images/out
    context=(--build-context build=target/images)
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
for image in coordinator worker; do
    "${build[@]}" "${context[@]}" --file deploy/docker/Dockerfile --target "$image" --tag "$prefix$image:$tag" \
        --build-arg SOURCE_DATE_EPOCH="$epoch" --build-arg VERSION="$version" \
        --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" .
done
echo "deploy/docker/build.sh: ${prefix}coordinator:$tag and ${prefix}worker:$tag"
