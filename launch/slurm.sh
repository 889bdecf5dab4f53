#!/usr/bin/env bash
# train.py as a SLURM job: a process on each GPU (or, with --gpus 0, one on each node), --workdir on a file system
# that all nodes share.
#
#   launch/slurm.sh --nodes 2 [--gpus 8] [--time 24:00:00] [--partition P] [--account A] [--cpus 8] [--dry-run] \
#       -- --config configs/svd.py --workdir /shared/svd
#
# The processes find each other by SLURM's variables. Two minutes before the time is over SLURM sends SIGTERM: the
# run saves, ends with code 130, and the job asks for its own requeue; --requeue does the same after a lost node.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes='' gpus=8 time='24:00:00' partition='' account='' cpus=8 python='.venv/bin/python' name=sgm_jax
options nodes gpus time partition account cpus python name -- "$@"
needed nodes
tasks=$((gpus > 0 ? gpus : 1))
job=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--cpus-per-task=$cpus" "--time=$time"
  --requeue --open-mode=append "--signal=TERM@120")
if [ "$gpus" -gt 0 ]; then job+=("--gpus-per-node=$gpus"); fi
if [ -n "$partition" ]; then job+=("--partition=$partition"); fi
if [ -n "$account" ]; then job+=("--account=$account"); fi

# 130 is train.py's code for stopped on request; srun gives the largest of its tasks' codes.
run sbatch "${job[@]}" "--wrap=srun --kill-on-bad-exit=0 $(quoted "$python" train.py "${TRAIN[@]}"); \
code=\$?; if [ \$code = 130 ]; then scontrol requeue \$SLURM_JOB_ID; fi; exit \$code"
