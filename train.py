"""Trains what a config names.

python train.py --config configs/svd.py --workdir runs/svd [--config.train.batch_size=32 ...]

The same command again goes on from the newest checkpoint. Without --workdir a run is logs/<time>_<config>,
and --resume goes on with it. After the last step the run is tested on held-out examples.

ctrl-C and SIGTERM finish the step, save and stop; SIGUSR1 saves; SIGUSR2 opens a debugger.

On several hosts, the same command runs on each: on a TPU slice, under SLURM and Open MPI they find each
other; elsewhere, each is told --coordinator HOST:PORT --num_processes N --process_id I.
"""

import sys

from absl import flags

from sgm_jax import cli

CONFIG = cli.define_config('what to train: FILE.py[:VARIANT]')
WORKDIR = flags.DEFINE_string('workdir', '', 'folder of the run: checkpoints, logs, config')
RESUME = flags.DEFINE_string('resume', '', 'a run to go on with: its folder, or a checkpoint in it')
POSTFIX = flags.DEFINE_string(
    'postfix', '', 'words at the end of the name of a run without --workdir'
)
TRAIN = flags.DEFINE_bool('train', True, 'train; --notrain only tests')
TEST = flags.DEFINE_bool('test', True, 'test on held-out examples when the training is over')
PROFILE = flags.DEFINE_string('profile', '', 'steps to trace for TensorBoard, FIRST:LAST')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, of several hosts')
PROCESSES = flags.DEFINE_integer('num_processes', None, 'how many processes there are in all')
PROCESS = flags.DEFINE_integer('process_id', None, 'which of them this is, from 0')
TIMEOUT = flags.DEFINE_integer('start_timeout', 300, 'seconds to wait for the other processes')
CACHE = flags.DEFINE_bool('cache', True, 'keep compiled programs for the next start')


def main() -> int:
    from sgm_jax.parallel import hosts
    from sgm_jax.training.run import Choices, run

    launch = hosts.find(COORDINATOR.value, PROCESSES.value, PROCESS.value, timeout=TIMEOUT.value)
    choices = Choices(
        workdir=WORKDIR.value,
        resume=RESUME.value,
        name=cli.config_name(sys.argv) or '',
        postfix=POSTFIX.value,
        train=TRAIN.value,
        test=TEST.value,
        profile=PROFILE.value,
        debug=cli.DEBUG.value,
        keep_compiled=CACHE.value,
    )
    return run(CONFIG.value, choices, launch=launch)


if __name__ == '__main__':
    cli.run(main)
