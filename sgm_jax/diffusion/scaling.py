"""Preconditioning: how the network's input, output and noise level are scaled around it.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), in the notation of Karras et al. 2022, equation 7.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

Coefficients = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Scaling(Protocol):
    """Gives (c_skip, c_out, c_in, c_noise), each of sigma's shape."""

    def __call__(self, sigma: jax.Array) -> Coefficients: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMScaling:
    """Keeps the network's input and target at unit variance for data of deviation sigma_data.

    Source: Karras et al. 2022, table 1 (EDM); sgm's EDMScaling.
    """

    sigma_data: float = 0.5

    def __call__(self, sigma: jax.Array) -> Coefficients:
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / jnp.sqrt(variance)
        return c_skip, c_out, 1 / jnp.sqrt(variance), 0.25 * jnp.log(sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpsScaling:
    """The network predicts the noise (Stable Diffusion 1, SDXL). Source: sgm's EpsScaling."""

    def __call__(self, sigma: jax.Array) -> Coefficients:
        return jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(sigma**2 + 1), sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class VScaling:
    """The network predicts v = alpha noise - sigma x (Stable Diffusion 2).

    Source: Salimans & Ho 2022, appendix D, written for variance-exploding x; sgm's VScaling.
    """

    def __call__(self, sigma: jax.Array) -> Coefficients:
        c_in = 1 / jnp.sqrt(sigma**2 + 1)
        return c_in**2, -sigma * c_in, c_in, sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class VScalingWithEDMcNoise:
    """v prediction with EDM's continuous c_noise (Stable Video Diffusion, SV3D).

    Source: Blattmann et al. 2023; sgm's VScalingWithEDMcNoise.
    """

    def __call__(self, sigma: jax.Array) -> Coefficients:
        c_skip, c_out, c_in, _ = VScaling()(sigma)
        return c_skip, c_out, c_in, 0.25 * jnp.log(sigma)


SCALINGS = {
    'edm': EDMScaling,
    'eps': EpsScaling,
    'v': VScaling,
    'v_edm_cnoise': VScalingWithEDMcNoise,
}
