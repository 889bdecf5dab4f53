"""Which noise levels a training step sees."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from sgm_jax.diffusion.discretization import Discretization, LegacyDDPMDiscretization
from sgm_jax.errors import UserError


class SigmaSampling(Protocol):
    """Draws noise levels: float32 of the given shape."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMSampling:
    """log sigma is normal. Source: Karras et al. 2022, table 1 (EDM); sgm's EDMSampling."""

    p_mean: float = -1.2
    p_std: float = 1.2

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.exp(self.p_mean + self.p_std * jax.random.normal(key, shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteSampling:
    """An entry of a table, all equally likely. Source: sgm's DiscreteSampling.

    `idx_range` (first, end) draws only from first <= index < end.
    """

    num_idx: int = 1000
    discretization: Discretization = dataclasses.field(default_factory=LegacyDDPMDiscretization)
    do_append_zero: bool = False
    flip: bool = True
    idx_range: tuple[int, int] | None = None

    def __post_init__(self):
        first, end = self._range
        if not 0 <= first < end <= self.num_idx:
            raise UserError(
                f'idx_range is {self.idx_range}; give (first, end) with '
                f'0 <= first < end <= {self.num_idx}'
            )

    @property
    def _range(self) -> tuple[int, int]:
        return self.idx_range or (0, self.num_idx)

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        table = self.discretization.sigmas(
            self.num_idx, do_append_zero=self.do_append_zero, flip=self.flip
        )
        return jnp.asarray(table)[jax.random.randint(key, shape, *self._range)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroSampling:
    """Almost no noise: 1e-5, which keeps logarithms finite. Source: sgm's ZeroSampler."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        del key
        return jnp.full(shape, 1e-5)


SIGMA_SAMPLINGS = {'edm': EDMSampling, 'discrete': DiscreteSampling, 'zero': ZeroSampling}
