"""sgm's toy recipe for CIFAR-10: small colour pictures by class.

  python train.py --config configs/cifar10.py --workdir runs/cifar10
  python sample.py --checkpoint runs/cifar10 --cls 3 --count 16 --output cats.png

Variants: '' (32x32, after sgm's configs/example_training/toy/cifar10_cond.yaml) and 'tiny' (the digits inside
scikit-learn at 16x16: the recipe on a CPU, without a download).

CIFAR-10 comes from TensorFlow Datasets, where it must have been prepared; the error says how.
"""

import pathlib

import ml_collections

from sgm_jax.config import check_variant, load_config

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    toy = pathlib.Path(__file__).with_name('mnist.py')
    config = load_config(f'{toy}:{variant or "cond"}')
    if not variant:
        config.model.network.update(in_channels=3, out_channels=3)
        config.data.update(dataset='cifar10', height=32, width=32)
        config.train.steps = 2000  # sgm's 20 epochs
        config.sample.update(height=32, width=32)
    return config
