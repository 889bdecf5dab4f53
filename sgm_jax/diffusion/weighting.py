"""How much the loss at each noise level counts."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp


class Weighting(Protocol):
    """Gives a weight for each sigma, in sigma's shape."""

    def __call__(self, sigma: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitWeighting:
    """One, everywhere. Source: sgm's UnitWeighting."""

    def __call__(self, sigma: jax.Array) -> jax.Array:
        return jnp.ones_like(sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMWeighting:
    """1 / c_out^2 of EDM's scaling, so that every level has the same loss at the start.

    Source: Karras et al. 2022, table 1 (EDM); sgm's EDMWeighting.
    """

    sigma_data: float = 0.5

    def __call__(self, sigma: jax.Array) -> jax.Array:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class VWeighting:
    """The plain loss on v: 1 + 1 / sigma^2. Source: sgm's VWeighting."""

    def __call__(self, sigma: jax.Array) -> jax.Array:
        return EDMWeighting(sigma_data=1.0)(sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpsWeighting:
    """The plain loss on the noise: 1 / sigma^2. Source: sgm's EpsWeighting."""

    def __call__(self, sigma: jax.Array) -> jax.Array:
        return sigma**-2.0


WEIGHTINGS = {'unit': UnitWeighting, 'edm': EDMWeighting, 'v': VWeighting, 'eps': EpsWeighting}
