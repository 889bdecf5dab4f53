#!/usr/bin/env bash
# train.py on every machine of a TPU slice, over gcloud's ssh. The checkout is at --folder on each of them, with
# the package installed in its .venv, and --workdir is a bucket's folder that all of them have mounted.
#
#   launch/tpu_gcloud.sh --name my-slice --zone us-east5-a [--project P] [--folder '~/sgm_jax'] [--dry-run] \
#       -- --config configs/svd.py --workdir /mnt/bucket/svd
#
# With --create the slice is made first, of bare machines. On each of them --setup is run, which may mount the
# bucket, and --repo is cloned to --folder and installed with a Python of its own, which uv fetches. One of the two
# must leave train.py and .venv in --folder; without --create they are for machines that are there already.
#   --create v5p-64 --runtime v2-alpha-tpuv5 --repo URL [--branch main] --setup 'gcsfuse BUCKET /mnt/bucket'
# The machines find each other (the slice's metadata); a run that was stopped goes on with the same command, without
# these flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' zone='' project='' folder='sgm_jax' create='' runtime='' repo='' branch='' setup=''
python='.venv/bin/python'
options name zone project folder create runtime repo branch setup python -- "$@"
needed name zone
place=("--zone=$zone")
if [ -n "$project" ]; then place+=("--project=$project"); fi

# on_all COMMAND: in the shell of every machine.
on_all() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all "--command=$1"
}

if [ -n "$create" ]; then
  needed runtime
  if [ -z "$repo$setup" ]; then
    fail "the machines that --create makes are bare; give --repo URL of the checkout, or --setup COMMAND"
  fi
  run gcloud compute tpus tpu-vm create "$name" "${place[@]}" "--accelerator-type=$create" "--version=$runtime"
fi
if [ -n "$setup" ]; then on_all "$setup"; fi
if [ -n "$repo" ]; then
  # The images' own Python is older than what the package needs.
  on_all "git clone $(quoted ${branch:+"--branch=$branch"} "$repo") $folder && cd $folder && \
python3 -m pip install --user uv && python3 -m uv venv --python 3.12 .venv && \
python3 -m uv pip install --python .venv/bin/python -e '.[tpu]'"
fi
on_all "cd $folder && $(quoted "$python" train.py "${TRAIN[@]}")"
