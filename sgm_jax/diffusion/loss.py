"""The training loss: add noise, denoise, compare.

In two layers, so that a validation with fixed noise, or a test, is the same code as a training step:
`draw` is all that is random, `per_sample` is all that is compared, and calling the loss does both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sgm_jax.diffusion.denoiser import spread
from sgm_jax.diffusion.sigma_sampling import SigmaSampling
from sgm_jax.diffusion.weighting import Weighting
from sgm_jax.errors import UserError

KINDS = ('l2', 'l1', 'lpips')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardDiffusionLoss:
    """The weighted difference between x and the denoised noisy x.

    `kind` is 'l2', 'l1' or 'lpips'; the last compares with a function given at the call, and is not
    weighted. `offset_noise_level` adds noise that is constant over each channel, so that a model learns
    to change overall brightness.

    Source: sgm's StandardDiffusionLoss. Two differences: a clip's frames share one sigma, and its offset
    noise (one value per clip and channel) works.
    """

    sigma_sampling: SigmaSampling
    weighting: Weighting
    kind: str = 'l2'
    offset_noise_level: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f'loss kind is {self.kind!r}; choose one of: {", ".join(KINDS)}')

    def draw(
        self, key: jax.Array, x: jax.Array, num_frames: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Noise levels and noise for x.

        Args:
          key: a jax key.
          x: images (b, h, w, c), or clips (b * num_frames, h, w, c).
          num_frames: frames per clip; None for images.

        Returns:
          sigma, float32 (x.shape[0],), and noise, float32 of x's shape.

        Raises:
          UserError: x is not a whole number of clips.
        """
        frames = num_frames or 1
        if x.shape[0] % frames:
            raise UserError(
                f'a batch of {x.shape[0]} frames is not a whole number of clips of {frames}; '
                'give a multiple, or another num_frames'
            )
        clips = x.shape[0] // frames
        sigma_key, noise_key, offset_key = jax.random.split(key, 3)
        sigma = jnp.repeat(self.sigma_sampling(sigma_key, (clips,)), frames)
        noise = jax.random.normal(noise_key, x.shape)
        if self.offset_noise_level:
            one = (1,) * (x.ndim - 2)
            offset = jax.random.normal(offset_key, (clips, *one, x.shape[-1]))
            noise = noise + self.offset_noise_level * jnp.repeat(offset, frames, axis=0)
        return sigma, noise

    def per_sample(
        self,
        denoised: jax.Array,
        x: jax.Array,
        sigma: jax.Array,
        perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """The loss of each sample, float32 (b,).

        Args:
          denoised: (b, ...).
          x: what it should be, (b, ...).
          sigma: (b,), for the weights.
          perceptual: for 'lpips': a function of (denoised, x) with b values.

        Raises:
          UserError: the kind is 'lpips' and there is no `perceptual`.
        """
        denoised, x = denoised.astype(jnp.float32), x.astype(jnp.float32)
        if self.kind == 'lpips':
            if perceptual is None:
                raise UserError(
                    "loss kind is 'lpips', but no perceptual function was given; "
                    "pass perceptual=..., or use 'l2'"
                )
            return perceptual(denoised, x).reshape(-1)
        difference = denoised - x
        distance = jnp.abs(difference) if self.kind == 'l1' else difference**2
        return self.weighting(sigma) * distance.mean(axis=tuple(range(1, x.ndim)))

    def __call__(
        self,
        key: jax.Array | None,
        denoise: Callable[[jax.Array, jax.Array, Any], jax.Array],
        x: jax.Array,
        cond: Any,
        *,
        num_frames: int | None = None,
        perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        sigma: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """One noisy look at each sample.

        Args:
          key: a jax key; may be None when both sigma and noise are given.
          denoise: a function of (noisy x, sigma, cond), with the denoiser and network inside.
          x: (b, ...), or (b * num_frames, ...).
          cond: handed to `denoise`.
          num_frames: as in `draw`.
          perceptual: as in `per_sample`.
          sigma: (x.shape[0],); given instead of drawn.
          noise: like x; given instead of drawn.

        Returns:
          The losses and the sigmas they were taken at, float32 (x.shape[0],) each.
        """
        x = x.astype(jnp.float32)
        if sigma is None or noise is None:
            drawn_sigma, drawn_noise = self.draw(key, x, num_frames)
            sigma = drawn_sigma if sigma is None else sigma
            noise = drawn_noise if noise is None else noise
        denoised = denoise(x + spread(sigma, x) * noise, sigma, cond)
        return self.per_sample(denoised, x, sigma, perceptual), sigma


LOSSES = {'standard': StandardDiffusionLoss}
