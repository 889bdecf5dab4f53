"""Trains what a config names.

python train.py --config configs/svd.py --workdir runs/svd [--config.train.batch_size=32 ...]

The same command again goes on from the newest checkpoint. On several hosts, the same command runs on each: on
a TPU slice, under SLURM and Open MPI they find each other; elsewhere, each is told
--coordinator HOST:PORT --num_processes N --process_id I.
"""

from absl import flags

from sgm_jax import cli

CONFIG = cli.define_config('what to train: FILE.py[:VARIANT]')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run: checkpoints, logs, config')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, of several hosts')
PROCESSES = flags.DEFINE_integer('num_processes', None, 'how many processes there are in all')
PROCESS = flags.DEFINE_integer('process_id', None, 'which of them this is, from 0')
TIMEOUT = flags.DEFINE_integer('start_timeout', 300, 'seconds to wait for the other processes')
CACHE = flags.DEFINE_bool('cache', True, 'keep compiled programs for the next start')


def main() -> int:
    from sgm_jax.parallel import hosts
    from sgm_jax.training.run import run

    launch = hosts.find(COORDINATOR.value, PROCESSES.value, PROCESS.value, timeout=TIMEOUT.value)
    return run(CONFIG.value, WORKDIR.value, launch=launch, keep_compiled=CACHE.value)


if __name__ == '__main__':
    cli.run(main)
