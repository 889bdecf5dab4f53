"""Trains what a config names.

python train.py --config configs/svd.py --workdir runs/svd [--config.train.batch_size=32 ...]

The same command again goes on from the newest checkpoint.
"""

from absl import flags

from sgm_jax import cli

CONFIG = cli.define_config('what to train: FILE.py[:VARIANT]')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run: checkpoints, logs, config')


def main() -> int:
    from sgm_jax.training.run import run

    return run(CONFIG.value, WORKDIR.value)


if __name__ == '__main__':
    cli.run(main)
