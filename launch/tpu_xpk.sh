#!/usr/bin/env bash
# train.py on the TPU slices of a GKE cluster, with xpk (https://github.com/AI-Hypercomputer/xpk). The image has
# the checkout as its working folder, and the package installed with its tpu extra.
#
#   launch/tpu_xpk.sh --name svd-1 --cluster my-cluster --tpu-type v5p-64 --image IMAGE [--slices 1] [--zone Z]
#       [--project P] [--restarts 3] [--dry-run] -- --config configs/svd.py --workdir /mnt/bucket/svd
#
# A slice that is lost, or preempted, is started again --restarts times and goes on from the newest checkpoint.
# Several slices: the mesh's `data` is a multiple of their number (--config.mesh.data).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' cluster='' tpu_type='' image='' slices=1 zone='' project='' restarts=3
options name cluster tpu-type image slices zone project restarts -- "$@"
needed name cluster tpu-type image
place=()
if [ -n "$zone" ]; then place+=("--zone=$zone"); fi
if [ -n "$project" ]; then place+=("--project=$project"); fi

# By itself xpk starts again only after codes 42 and 127 to 255 (130: train.py was sent SIGTERM, and has saved). 3 is
# that of a process which has lost another one. The grace is for the step to be finished and saved.
run xpk workload create "--workload=$name" "--cluster=$cluster" "--tpu-type=$tpu_type" "--num-slices=$slices" \
  ${place[@]+"${place[@]}"} "--docker-image=$image" "--max-restarts=$restarts" --restart-on-exit-codes=3 \
  --termination-grace-period-seconds=300 \
  "--command=$(quoted python train.py "${TRAIN[@]}")"
