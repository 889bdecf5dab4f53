"""What stands between encoder and decoder."""

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
