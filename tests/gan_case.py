"""A small adversarial training that PyTorch has run too (benchmarks/torch_gan_steps.py). Only numpy here."""

import golden
import numpy as np

CASE = {
    'ch': 32,
    'z_channels': 4,
    'ndf': 16,
    'n_layers': 2,
    'perceptual_weight': 0.5,
    'disc_weight': 0.5,
    'kl_weight': 1e-3,
    'logvar_init': 0.1,
    'learning_rate': 1e-3,
    'lpips_shapes': golden.cases()['cases']['lpips']['shapes'],
}


def parameters(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Made from names and shapes."""
    return {name: golden.generate(name, tuple(shape)) for name, shape in shapes.items()}


def pictures(number: int) -> np.ndarray:
    """The batch of a step, (2, 40, 40, 3): smooth noise in [-1, 1]."""
    noise = np.random.default_rng(number).standard_normal((2, 10, 10, 3))
    return np.tanh(noise.repeat(4, 1).repeat(4, 2)).astype(np.float32)
