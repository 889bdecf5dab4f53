"""Noise levels: which sigmas a sampler visits, and the tables that discrete models were trained on."""

import dataclasses
import functools
from typing import Protocol

import numpy as np

from sgm_jax.errors import UserError


class Discretization(Protocol):
    """Chooses n noise levels. Made on the host: a schedule is data, never traced."""

    def sigmas(self, n: int, *, do_append_zero: bool = True, flip: bool = False) -> np.ndarray:
        """The n sigmas, descending, then a zero.

        Args:
          n: how many levels, without the zero.
          do_append_zero: whether the zero follows; a sampler needs it, a table does not.
          flip: ascending instead.

        Returns:
          float32 (n + 1,), or (n,) without the zero.

        Raises:
          UserError: n is out of range.
        """
        ...


def _arrange(sigmas: np.ndarray, do_append_zero: bool, flip: bool) -> np.ndarray:
    sigmas = np.append(sigmas, 0.0) if do_append_zero else sigmas
    return (sigmas[::-1] if flip else sigmas).astype(np.float32)


def _check_steps(n: int, most: float = np.inf) -> None:
    if n < 1:
        raise UserError(f'num_steps is {n}; give 1 or more')
    if n > most:
        raise UserError(f'num_steps is {n}, but the model has {most} timesteps; give 1 to {most}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMDiscretization:
    """Equal steps in sigma^(1/rho) from sigma_max down to sigma_min.

    Source: Karras et al. 2022, equation 5; sgm's EDMDiscretization.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if not 0 < self.sigma_min <= self.sigma_max:
            raise UserError(
                f'sigma_min is {self.sigma_min} and sigma_max is {self.sigma_max}; '
                'give 0 < sigma_min <= sigma_max'
            )

    def sigmas(self, n: int, *, do_append_zero: bool = True, flip: bool = False) -> np.ndarray:
        _check_steps(n)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return _arrange(np.linspace(high, low, n) ** self.rho, do_append_zero, flip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegacyDDPMDiscretization:
    """The sigmas of Stable Diffusion's 'scaled linear' betas, at roughly equally spaced timesteps.

    sigma^2 = (1 - alpha_bar) / alpha_bar. Fewer than num_timesteps steps count down from the noisiest
    timestep and never reach timestep 0.

    Source: Ho et al. 2020, equation 4; sgm's LegacyDDPMDiscretization.
    """

    linear_start: float = 0.00085
    linear_end: float = 0.0120
    num_timesteps: int = 1000

    @functools.cached_property
    def _table(self) -> np.ndarray:
        betas = np.linspace(self.linear_start**0.5, self.linear_end**0.5, self.num_timesteps) ** 2
        alpha_bar = np.cumprod(1 - betas)
        return np.sqrt((1 - alpha_bar) / alpha_bar)

    def sigmas(self, n: int, *, do_append_zero: bool = True, flip: bool = False) -> np.ndarray:
        _check_steps(n, self.num_timesteps)
        last = self.num_timesteps - 1
        # All the timesteps are a case of their own: equal spacing would stop short of timestep 0.
        steps = np.linspace(last, 0, n, endpoint=n == self.num_timesteps).astype(int)
        return _arrange(self._table[steps], do_append_zero, flip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetDiscretization:
    """The first n of a few chosen entries of a table, for models that need one to four steps.

    `subset` counts from the noisiest of `num_timesteps` levels. Source: sgm's SubstepSampler (SDXL Turbo).
    """

    discretization: Discretization = dataclasses.field(default_factory=LegacyDDPMDiscretization)
    num_timesteps: int = 1000
    subset: tuple[int, ...] = (0, 100, 200, 300)

    def __post_init__(self):
        if list(self.subset) != sorted(set(self.subset)) or not all(
            0 <= index < self.num_timesteps for index in self.subset
        ):
            raise UserError(
                f'subset is {self.subset}; give ascending numbers from 0 to {self.num_timesteps - 1}'
            )

    def sigmas(self, n: int, *, do_append_zero: bool = True, flip: bool = False) -> np.ndarray:
        _check_steps(n)
        if n > len(self.subset):
            raise UserError(
                f'num_steps is {n}, but this model has {len(self.subset)} levels to begin a step at; '
                f'give 1 to {len(self.subset)}'
            )
        table = self.discretization.sigmas(self.num_timesteps, do_append_zero=False)
        return _arrange(table[list(self.subset[:n])], do_append_zero, flip)


DISCRETIZATIONS = {
    'edm': EDMDiscretization,
    'legacy_ddpm': LegacyDDPMDiscretization,
    'subset': SubsetDiscretization,
}
