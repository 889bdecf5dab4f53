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


# Of a loss between latents: its options, and the side of the pictures (reconstructions have 40).
LATENT_CASES = {
    'decoded': ({'latent_weight': 0.7, 'perceptual_weight': 0.4}, 40),
    'pictures_resized': (
        {'perceptual_weight_on_inputs': 0.5, 'scale_input_to_tgt_size': True},
        56,
    ),
    'reconstructions_resized': (
        {'perceptual_weight_on_inputs': 0.5, 'scale_tgt_to_input_size': True},
        24,
    ),
}


def latents(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents (2, 20, 20, 4), others that are meant to be these, and pictures (2, side, side, 3)."""
    draw = np.random.default_rng(5).standard_normal
    z, off = draw((2, 20, 20, 4)), draw((2, 20, 20, 4))
    x = np.tanh(draw((2, side // 4, side // 4, 3)).repeat(4, 1).repeat(4, 2))
    return tuple(y.astype(np.float32) for y in (z, z + 0.3 * off, x))


ACTNORM_CASE = {'ndf': 4, 'n_layers': 2}


def scene(side: int) -> np.ndarray:
    """A picture (1, side, side, 3): bars and a gradient in [-1, 1]."""
    y, x = np.mgrid[:side, :side] / side
    parts = (np.sin(21 * x + 5 * y), np.sign(np.sin(9 * y)) * 0.5, 2 * x - 1)
    return np.stack(parts, -1)[None].astype(np.float32)


def inception_parameters(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """As `parameters`, with kernels large enough that what comes out depends on what goes in."""
    found = parameters(shapes)
    return {k: np.float32(1.8) * v if k.endswith('conv.weight') else v for k, v in found.items()}
