#!/usr/bin/env bash
# train.py as an indexed Kubernetes Job of GPU nodes, a pod on each, from kubernetes.yaml beside this file. --claim
# is a persistent volume that all pods can write; it is mounted at /runs.
#
#   launch/kubernetes.sh --name svd-1 --image IMAGE --nodes 2 [--gpus 8] --claim runs [--memory 0.92] \
#       [--namespace N] [--dry-run] -- --config configs/svd.py --workdir /runs/svd
#
# Pod I is process I; pod 0 is the coordinator, under the name that the headless service gives it. A pod that ends
# with a failure is started again, and the run goes on from the newest checkpoint.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/common.sh"

name='' image='' nodes='' gpus=8 claim='' memory='' namespace=default
options name image nodes gpus claim memory namespace -- "$@"
needed name image nodes claim
gpu_memory

# JSON's strings are YAML's.
words=''
for word in "${TRAIN[@]}"; do
  swap word '\' '\\'
  swap word '"' '\"'
  words+=", \"$word\""
done
text="$(cat "$here/kubernetes.yaml")"
fill() { swap text "\${$1}" "$2"; }
fill NAME "$name"
fill IMAGE "$image"
fill NODES "$nodes"
fill GPUS "$gpus"
fill CLAIM "$claim"
fill MEMORY "$memory"
fill WORDS "${words#, }"
if [ "$DRY" = 1 ]; then
  echo "kubectl apply --namespace=$namespace -f - <<'END'"
  echo "$text"
  echo END
else
  kubectl apply "--namespace=$namespace" -f - <<<"$text"
fi
