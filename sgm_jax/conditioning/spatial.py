"""Embedders of pictures as maps: shrunk, encoded and noised, or encoded into tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.networks.autoencoder import Autoencoder, Encoder
from sgm_jax.networks.clip import cubic, resampled
from sgm_jax.networks.layers import Keys, conv
from sgm_jax.networks.regularizers import DiagonalGaussian

METHODS = ('nearest', 'bilinear', 'bicubic', 'area')


class SpatialRescaler(nnx.Module):
    """A picture, resized `n_stages` times by `multiplier`: (n, h, w, c) to (n, h', w', c').

    With out_channels a convolution without context of its own follows (kernel_size). Clips
    (n, t, h, w, c) become frames (n * t, ...) when wrap_video is set. Follows sgm's SpatialRescaler and
    torch.nn.functional.interpolate.
    """

    def __init__(
        self,
        *,
        n_stages: int = 1,
        method: str = 'bilinear',
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
        wrap_video: bool = False,
        kernel_size: int = 1,
        rngs: Keys,
    ):
        if method not in METHODS:
            raise ValueError(f'unknown method {method!r}; choose one of: {", ".join(METHODS)}')
        if n_stages < 0 or multiplier <= 0:
            raise ValueError(
                f'n_stages is {n_stages} and multiplier is {multiplier}; give 0 or more, and above 0'
            )
        self.n_stages, self.method, self.multiplier = n_stages, method, multiplier
        self.wrap_video = wrap_video
        if out_channels is not None:
            padding = [(kernel_size // 2,) * 2] * 2
            self.channel_mapper = conv(
                in_channels,
                out_channels,
                kernel_size,
                padding=padding,
                bias=bias,
                dtype=jnp.float32,
                rngs=rngs,
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.wrap_video and x.ndim == 5:
            x = x.reshape(-1, *x.shape[2:])
        for _ in range(self.n_stages):
            x = resize(x, self.multiplier, self.method)
        return self.channel_mapper(x) if hasattr(self, 'channel_mapper') else x


def resize(x: jax.Array, scale: float, method: str) -> jax.Array:
    """Images (n, h, w, c), `scale` times as large, without antialiasing but for 'area'."""
    rows, columns = (_axis(n, scale, method) for n in x.shape[1:3])
    return resampled(x, rows, columns)


def _axis(n: int, scale: float, method: str) -> np.ndarray:
    """(floor(n * scale), n): each row is what one pixel of the result is made of."""
    count = math.floor(n * scale)
    matrix = np.zeros((count, n), np.float32)
    for row in range(count):
        for tap, weight in _taps(row, n, count, scale, method):
            matrix[row, min(max(tap, 0), n - 1)] += weight
    return matrix


def _taps(row: int, n: int, count: int, scale: float, method: str) -> list[tuple[int, float]]:
    if method == 'nearest':
        return [(math.floor(row / scale), 1.0)]
    if method == 'area':
        first, end = row * n // count, -(-(row + 1) * n // count)
        return [(tap, 1.0 / (end - first)) for tap in range(first, end)]
    centre = (row + 0.5) / scale - 0.5
    if method == 'bilinear':
        centre = max(centre, 0.0)
        left = math.floor(centre)
        return [(left, 1 - (centre - left)), (left + 1, centre - left)]
    left = math.floor(centre)
    return [(tap, cubic(centre - tap)) for tap in range(left - 1, left + 3)]


class LowScaleEncoder(nnx.Module):
    """A small picture as noised latents, and how noisy they are: an upscaler's condition.

    Latents (n, h, w, z) of the autoencoder, times scale_factor, at a random one of the first
    max_noise_level noise levels of a 'linear' schedule, enlarged or shrunk to output_size (None: as they
    are); and the levels (n, 1). Without a key (sampling) the likeliest latents and level 0 without noise.
    Follows sgm's LowScaleEncoder.
    """

    draws = True

    def __init__(
        self,
        model: Autoencoder,
        *,
        linear_start: float,
        linear_end: float,
        timesteps: int = 1000,
        max_noise_level: int = 250,
        output_size: int | None = 64,
        scale_factor: float = 1.0,
    ):
        if not 1 <= max_noise_level <= timesteps:
            raise ValueError(f'max_noise_level is {max_noise_level}; give 1 to {timesteps}')
        self.model = model
        self.linear_start, self.linear_end, self.timesteps = linear_start, linear_end, timesteps
        self.max_noise_level, self.output_size = max_noise_level, output_size
        self.scale_factor = scale_factor

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        posterior = DiagonalGaussian.of(self.model.encode(x))
        levels = jnp.zeros((len(x),), jnp.int32)
        if key is None:
            z = posterior.mode() * self.scale_factor
        else:
            draw_key, level_key, noise_key = jax.random.split(key, 3)
            levels = jax.random.randint(level_key, (len(x),), 0, self.max_noise_level)
            z = posterior.sample(draw_key) * self.scale_factor
            kept = self._alphas_cumprod()[levels][:, None, None, None]
            z = jnp.sqrt(kept) * z + jnp.sqrt(1 - kept) * jax.random.normal(noise_key, z.shape)
        if self.output_size is not None:
            z = _to_size(z, self.output_size)
        return z, levels[:, None].astype(jnp.float32)

    def _alphas_cumprod(self) -> jax.Array:
        root = np.linspace(self.linear_start**0.5, self.linear_end**0.5, self.timesteps)
        return jnp.asarray(np.cumprod(1 - root**2), jnp.float32)


def _to_size(z: jax.Array, size: int) -> jax.Array:
    """Nearest, as torch rounds: down."""
    rows, columns = (np.arange(size) * n // size for n in z.shape[1:3])
    return z[:, rows][:, :, columns]


class GaussianEncoder(nnx.Module):
    """A picture as tokens drawn from an encoder's posterior: (n, h * w, z), or a map (n, h, w, z).

    Without a key (sampling), the likeliest ones. sgm's GaussianEncoder, which this follows, also returns
    a KL term that its training never adds; here there is none.
    """

    draws = True

    def __init__(self, encoder: Encoder, *, flatten_output: bool = True):
        self.encoder, self.flatten_output = encoder, flatten_output

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        posterior = DiagonalGaussian.of(self.encoder(x))
        z = posterior.mode() if key is None else posterior.sample(key)
        return z.reshape(len(z), -1, z.shape[-1]) if self.flatten_output else z
