"""The denoiser D(x; sigma): a scaled network, in continuous or tabulated noise levels."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.diffusion.discretization import Discretization, LegacyDDPMDiscretization
from sgm_jax.diffusion.scaling import Scaling

# network(x, c_noise, cond, **model_inputs) -> an array like x.
Network = Callable[..., jax.Array]


class DenoiserLike(Protocol):
    """What `Denoiser` and `DiscreteDenoiser` have in common."""

    def __call__(
        self, network: Network, x: jax.Array, sigma: jax.Array, cond: Any, **model_inputs: Any
    ) -> jax.Array:
        """The denoised x.

        Args:
          network: a function of (scaled x, c_noise (b,), cond, **model_inputs).
          x: (b, ...), data plus sigma times noise.
          sigma: (b,).
          cond: handed to the network.
          **model_inputs: handed to the network.
        """
        ...


def spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """One value per sample (b,), shaped to multiply x (b, ...)."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def _apply(scaled, c_noise, network, x, cond, model_inputs):
    c_skip, c_out, c_in = (spread(c, x) for c in scaled)
    return c_skip * x + c_out * network(c_in * x, c_noise, cond, **model_inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A denoiser for any noise level. Source: sgm's Denoiser."""

    scaling: Scaling

    def __call__(
        self, network: Network, x: jax.Array, sigma: jax.Array, cond: Any, **model_inputs: Any
    ) -> jax.Array:
        *scaled, c_noise = self.scaling(sigma)
        return _apply(scaled, c_noise, network, x, cond, model_inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteDenoiser:
    """A denoiser for a network that knows only the num_idx noise levels of a table.

    sigma is snapped to the nearest entry, and c_noise becomes the (int32) index of the entry nearest to
    it, unless quantize_c_noise is off. Source: sgm's DiscreteDenoiser.
    """

    scaling: Scaling
    num_idx: int = 1000
    discretization: Discretization = dataclasses.field(default_factory=LegacyDDPMDiscretization)
    do_append_zero: bool = False
    quantize_c_noise: bool = True
    flip: bool = True

    @functools.cached_property
    def sigmas(self) -> np.ndarray:
        """The table, float32; ascending when `flip` is on."""
        return self.discretization.sigmas(
            self.num_idx, do_append_zero=self.do_append_zero, flip=self.flip
        )

    def sigma_to_idx(self, sigma: jax.Array) -> jax.Array:
        """Index of the nearest entry (the first of two equally near), int32 of sigma's shape."""
        # (b, num_idx) distances exist only on paper: XLA fuses them into the reduction.
        distance = jnp.abs(sigma[..., None] - self.sigmas)
        return jnp.argmin(distance, axis=-1).astype(jnp.int32)

    def idx_to_sigma(self, idx: jax.Array) -> jax.Array:
        """The entries at idx, float32."""
        return jnp.asarray(self.sigmas)[idx]

    def __call__(
        self, network: Network, x: jax.Array, sigma: jax.Array, cond: Any, **model_inputs: Any
    ) -> jax.Array:
        *scaled, c_noise = self.scaling(self.idx_to_sigma(self.sigma_to_idx(sigma)))
        c_noise = self.sigma_to_idx(c_noise) if self.quantize_c_noise else c_noise
        return _apply(scaled, c_noise, network, x, cond, model_inputs)


DENOISERS = {'continuous': Denoiser, 'discrete': DiscreteDenoiser}
