"""What stands between encoder and decoder, where it has no weights; with weights: quantizers.py.

The regularizers are called as quantizers are: `regularizer(z, key=None, *, train=False) -> (z, logs)`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class DiagonalGaussian(NamedTuple):
    """The posterior that moments describe. Follows sgm's DiagonalGaussianDistribution."""

    mean: jax.Array
    logvar: jax.Array

    @classmethod
    def of(cls, moments: jax.Array) -> 'DiagonalGaussian':
        """From (..., 2 z): mean and log-variance, the latter clipped to [-30, 20]."""
        mean, logvar = jnp.split(moments, 2, -1)
        return cls(mean, jnp.clip(logvar, -30.0, 20.0))

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw, (..., z)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def mode(self) -> jax.Array:
        """The likeliest latents, (..., z)."""
        return self.mean

    def kl(self) -> jax.Array:
        """Divergence from the standard normal in nats, summed over each example: (n,)."""
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * terms.sum(tuple(range(1, terms.ndim)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagonalGaussianRegularizer:
    """Draws latents from the posterior. Follows sgm's class of this name.

    Args:
      sample: whether to draw with the key; without `sample`, or without a key, it is the likeliest.

    Calls: moments (n, ..., 2 z) -> (latents (n, ..., z), logs): 'kl_loss' is the divergence from the
      standard normal in nats, summed over each example and averaged over examples.
    """

    sample: bool = True

    def __call__(
        self, moments: jax.Array, key: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        posterior = DiagonalGaussian.of(moments)
        drawn = self.sample and key is not None
        z = posterior.sample(key) if drawn else posterior.mode()
        return z, {'kl_loss': posterior.kl().mean()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityRegularizer:
    """Leaves everything as it is, and logs nothing. Follows sgm's class of this name."""

    def __call__(
        self, z: jax.Array, key: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return z, {}
