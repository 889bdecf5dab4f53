#!/usr/bin/env bash
# train.py on every machine of a TPU slice, over gcloud's ssh. The checkout is at --folder on each of them, with
# the package installed (pip install -e '.[tpu]'), and --workdir is a bucket's folder that all of them have mounted.
#
#   launch/tpu_gcloud.sh --name my-slice --zone us-east5-a [--project P] [--folder '~/sgm_jax'] [--dry-run] \
#       -- --config configs/svd.py --workdir /mnt/bucket/svd
#
# With --create the slice is made first:
#   --create v5p-64 --runtime v2-alpha-tpuv5
# The machines find each other (the slice's metadata); a run that was stopped goes on with the same command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' zone='' project='' folder='sgm_jax' create='' runtime='' python='.venv/bin/python'
options name zone project folder create runtime python -- "$@"
needed name zone
place=("--zone=$zone")
if [ -n "$project" ]; then place+=("--project=$project"); fi

if [ -n "$create" ]; then
  needed runtime
  run gcloud compute tpus tpu-vm create "$name" "${place[@]}" "--accelerator-type=$create" "--version=$runtime"
fi
run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
  "--command=cd $folder && $(quoted "$python" train.py "${TRAIN[@]}")"
