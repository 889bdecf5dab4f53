#!/usr/bin/env bash
# train.py on the GPUs of this machine. One process drives all of them, which is what JAX is made for; with
# --processes N each process drives its share of them, as on several hosts.
#
#   launch/multi_gpu.sh [--gpus 8] [--processes 1] [--memory 0.92] [--dry-run] \
#       -- --config configs/svd.py --workdir runs/svd
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpus=8 processes=1 memory='' port=12321 python='.venv/bin/python'
options gpus processes memory port python -- "$@"
gpu_memory
if [ $((gpus % processes)) != 0 ]; then fail "--gpus is $gpus, which --processes $processes does not divide"; fi
each=$((gpus / processes))

pids=()
for ((process = 0; process < processes; process++)); do
  visible=$(seq -s, $((process * each)) $((process * each + each - 1)))
  line=(env "CUDA_VISIBLE_DEVICES=$visible" "XLA_CLIENT_MEM_FRACTION=$memory" XLA_PYTHON_CLIENT_MEM_FRACTION=
    "$python" train.py "${TRAIN[@]}")
  if [ "$processes" -gt 1 ]; then
    line+=("--coordinator=127.0.0.1:$port" "--num_processes=$processes" "--process_id=$process")
  fi
  if [ "$DRY" = 1 ]; then run "${line[@]}"; else "${line[@]}" & pids+=($!); fi
done
if [ "$DRY" = 1 ]; then exit 0; fi

# ctrl-C and SIGTERM reach each process once; the run saves, and all of them end.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
code=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
  wait "$pid" || code=$?
done
exit $code
