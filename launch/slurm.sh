#!/usr/bin/env bash
# train.py as a SLURM job: a process on each node, which drives all of its GPUs, --workdir on a file system that
# all nodes share.
#
#   launch/slurm.sh --nodes 2 [--gpus 8] [--cpus 8] [--memory 0.92] [--time 24:00:00] [--partition P] [--account A] \
#       [--dry-run] -- --config configs/svd.py --workdir /shared/svd
#
# --gpus are those of a node (0 for none), --cpus the cores beside each of them, --memory the part of each GPU.
# The processes find each other by SLURM's variables. Two minutes before the time is over SLURM sends SIGTERM: the
# run saves, ends with code 130, and the job asks for its own requeue; --requeue does the same after a lost node.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes='' gpus=8 time='24:00:00' partition='' account='' cpus=8 memory='' python='.venv/bin/python' name=sgm_jax
options nodes gpus time partition account cpus memory python name -- "$@"
needed nodes
gpu_memory
cores=$((cpus * (gpus > 0 ? gpus : 1)))
job=("--job-name=$name" "--nodes=$nodes" --ntasks-per-node=1 "--cpus-per-task=$cores" "--time=$time"
  --requeue --open-mode=append "--signal=TERM@120")
if [ "$gpus" -gt 0 ]; then job+=("--gpus-per-node=$gpus"); fi
if [ -n "$partition" ]; then job+=("--partition=$partition"); fi
if [ -n "$account" ]; then job+=("--account=$account"); fi

line=("$python" train.py "${TRAIN[@]}")
if [ "$gpus" -gt 0 ]; then
  line=(env "XLA_CLIENT_MEM_FRACTION=$memory" XLA_PYTHON_CLIENT_MEM_FRACTION= "${line[@]}")
fi

# Since SLURM 22.05 srun does not take over the job's --cpus-per-task, and a task would have one core.
# 130 is train.py's code for stopped on request; srun gives the largest of its tasks' codes.
run sbatch "${job[@]}" "--wrap=srun --cpus-per-task=$cores --kill-on-bad-exit=0 $(quoted "${line[@]}"); \
code=\$?; if [ \$code = 130 ]; then scontrol requeue \$SLURM_JOB_ID; fi; exit \$code"
