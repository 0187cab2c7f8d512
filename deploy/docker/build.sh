#!/usr/bin/env bash
# Builds the images of a farm with docker, podman or buildah: the first of them that is there, or --with NAME.
#
#   deploy/docker/build.sh                                       fresco/coordinator:dev, fresco/worker:dev
#   deploy/docker/build.sh --prefix registry.example.org/studio/fresco- --tag 0.1.0
#   deploy/docker/build.sh --cuda                                fresco/worker-cuda:dev besides, for NVIDIA GPUs
#   deploy/docker/build.sh --from-binaries target/release        packs programs that are built already; with --cuda, what
#                                                                deploy/cuda/build.sh has built, too
#   deploy/docker/build.sh --rust IMAGE                          what they are built in: a mirror's, or one by its digest
#   deploy/docker/build.sh --source URL                          where the sources are, for the images' labels
#
# Without --from-binaries the programs are built in an image of Rust, which is fetched from a registry. With it nothing
# is fetched; the C runtime of this machine goes along, and where it was built can be read in the programs.
#
# What the images are made of lies in target/images/coordinator.cdx.json, worker.cdx.json and worker-cuda.cdx.json
# afterwards, and in them at /usr/share/fresco/sbom.json.
#
# Equal sources and an equal Rust give equal images: files have the time of the last commit, or of SOURCE_DATE_EPOCH.
# REVISION names the sources where git cannot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
prefix=fresco/ tag=dev binaries="" rust="" source="" tool="" images=(coordinator worker)
programs=build sbom=sbom

stop() {
    echo "deploy/docker/build.sh: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case "$1" in
        --prefix | --tag | --from-binaries | --rust | --source | --with) [ $# -gt 1 ] || stop "$1 wants a value" ;;&
        --prefix) prefix=$2 && shift ;;
        --tag) tag=$2 && shift ;;
        --from-binaries) binaries=$2 && shift ;;
        --rust) rust=$2 && shift ;;
        --source) source=$2 && shift ;;
        --with) tool=$2 && shift ;;
        --cuda) images+=(worker-cuda) programs=build-cuda sbom=sbom-cuda ;;
        --help) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0" && exit ;;
        *) stop "$1 is not understood: --help tells what is" ;;
    esac
    shift
done

epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH=$epoch
if [ -z "$tool" ]; then
    if docker info >/dev/null 2>&1; then
        tool=docker
    else
        tool=$(command -v podman buildah | head -1) || stop "there is neither a docker that answers, nor podman, nor buildah: install one of them"
    fi
fi
case "${tool##*/}" in
    docker) build=(docker build) ;;
    podman) build=(podman build --timestamp "$epoch") ;;
    # It needs neither a daemon nor namespaces of its own.
    buildah) build=(buildah bud --isolation chroot --timestamp "$epoch") ;;
    *) stop "--with $tool: there are docker, podman and buildah" ;;
esac

rm -rf target/images && mkdir -p target/images
options=(--file deploy/docker/Dockerfile --build-arg "SOURCE_DATE_EPOCH=$epoch")
if [ -n "$binaries" ]; then
    cuda=()
    [ "$sbom" = sbom ] || cuda=(target/cuda)
    deploy/docker/layout "$binaries" target/images/out "${cuda[@]}"
    options+=(--build-context build=target/images --build-context build-cuda=target/images)
fi
[ -z "$rust" ] || options+=(--build-arg "RUST=$rust")
if [ "${build[0]}" != docker ]; then
    # These two keep layers of earlier builds with the time those had, and then equal sources give other images. So the
    # programs' stages alone are built of layers, once, and the images from what comes of it.
    if [ -z "$binaries" ]; then
        "${build[@]}" "${options[@]}" --layers --target "$programs" --tag "${prefix}build:$tag" .
        built=container-image://${prefix}build:$tag
        options+=(--build-context "build=$built" --build-context "build-cuda=$built")
    fi
    options+=(--layers=false)
fi
labels=()
[ -z "$source" ] || labels=(--label "org.opencontainers.image.source=$source")
revision=${REVISION:-$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
for image in "${images[@]}"; do
    "${build[@]}" "${options[@]}" "${labels[@]}" --target "$image" --tag "$prefix$image:$tag" \
        --build-arg VERSION="$version" --build-arg REVISION="$revision" .
done
"${build[@]}" "${options[@]}" --target "$sbom" --tag "${prefix}sbom:$tag" --output type=local,dest=target/images .
# Docker writes the files alone; the others leave an image of them besides.
[ "${build[0]}" = docker ] || "${build[0]}" rmi "${prefix}sbom:$tag" >/dev/null
for image in "${images[@]}"; do echo "deploy/docker/build.sh: $prefix$image:$tag"; done
