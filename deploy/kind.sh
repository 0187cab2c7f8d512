#!/usr/bin/env bash
# A farm in a cluster of one's own: makes a kind cluster, builds the images, installs the chart, draws a picture through
# it and fetches it. Needs docker, kind, kubectl and helm. Run again, it brings what changed into the same cluster.
#
#   deploy/kind.sh             the picture lies in kind.png
#   deploy/kind.sh --delete    removes the cluster
#
# CLUSTER names the cluster (fresco), FRESCO the `fresco` to submit with (target/release/fresco).
#
# This has not been run against Docker and kind yet: there were none where it was written. deploy/README.md says what
# has been tried.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=${CLUSTER:-fresco}
fresco=${FRESCO:-target/release/fresco}

stop() {
    echo "deploy/kind.sh: $1" >&2
    exit 1
}

for tool in docker kind kubectl helm; do
    command -v "$tool" >/dev/null || stop "there is no $tool: install it"
done
docker info >/dev/null 2>&1 || stop "docker does not answer: start it, or join its group"
case "${1-}" in
    "") ;;
    --delete) exec kind delete cluster --name "$cluster" ;;
    *) stop "$1 is not understood: there is --delete, and nothing else" ;;
esac
[ -x "$fresco" ] || stop "there is no $fresco: cargo build --release"

deploy/docker/build.sh
images=(fresco/coordinator:dev fresco/worker:dev)
for image in "${images[@]}"; do
    docker image inspect "$image" >/dev/null 2>&1 || stop "deploy/docker/build.sh left no image $image"
done

kind get clusters | grep -qx "$cluster" || kind create cluster --name "$cluster" --wait 180s
kind load docker-image --name "$cluster" "${images[@]}"

# The images' names are the same after a change, so the pods are told to start anew.
cluster_of=(--namespace fresco)
helm upgrade --install fresco deploy/helm/fresco --kube-context "kind-$cluster" "${cluster_of[@]}" --create-namespace \
    --set image.registry=fresco,image.coordinator=coordinator,image.worker=worker,image.tag=dev,image.pullPolicy=Never \
    --set pools.cpu.resources.requests.cpu=250m,pools.cpu.resources.requests.memory=512Mi
kube() {
    kubectl --context "kind-$cluster" "${cluster_of[@]}" "$@"
}
kube rollout restart statefulset/fresco-coordinator deployment/fresco-cpu
for workload in statefulset/fresco-coordinator deployment/fresco-cpu; do
    kube rollout status "$workload" --timeout 300s || stop "$workload did not become ready: kubectl -n fresco describe pods"
done

# kubectl takes a free port and says which.
exec 3< <(kube port-forward service/fresco-coordinator :7400 2>&1)
forward=$!
trap 'kill "$forward" 2>/dev/null || true' EXIT
read -r -t 30 said <&3 || stop "kubectl port-forward said nothing"
[[ $said =~ 127\.0\.0\.1:([0-9]+) ]] || stop "kubectl port-forward failed: $said"
export FRESCO_COORDINATOR=http://127.0.0.1:${BASH_REMATCH[1]}

job=$("$fresco" submit "snowy mountains at sunset with a ringed planet on the right" --size 256x256 --steps 12)
"$fresco" wait "$job"
"$fresco" download "$job" --out kind.png --force
echo "deploy/kind.sh: kind.png was drawn in the cluster; deploy/kind.sh --delete removes it"
