"""Samplers as step functions: one step is one network call, and everything that varies is data.

`plan` turns a schedule into the scalars of every call, on the host and in float64; `step` is traced once
and serves any schedule of any length. With D the denoised x, and d = (x - D) / sigma the slope of the
probability-flow ODE, going from sigma to sigma' along d is x' = D + keep (x - D), keep = sigma'/sigma:
a form without a division, exact at sigma' = 0.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.errors import UserError

# Arrays by name, 'x' among them: what the network is to be called on next, and in the end the result.
Carry = dict[str, jax.Array]
# The denoised x, given x (b, ...) and sigma (b,).
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


class Sampler(Protocol):
    """From noise to a sample, one network call at a time."""

    @property
    def stochastic(self) -> bool:
        """Whether `step` needs noise."""
        return False

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        """The scalars of every network call, by name; the leading axis is the calls.

        Args:
          sigmas: (n + 1,), descending; only the last may be zero.
        """
        ...

    def init(self, x: jax.Array) -> Carry:
        """The carry before the first call, for x at the first sigma."""
        return {'x': x}

    def step(
        self, carry: Carry, denoise: Denoise, scalars: Mapping[str, Any], noise: jax.Array | None
    ) -> Carry:
        """One network call; traceable.

        Args:
          carry: from `init` or the last step.
          denoise: the denoised x, a function of (x (b, ...), sigma (b,)).
          scalars: one call's entries of the plan.
          noise: standard normal, like x; None if the sampler is not `stochastic`.
        """
        ...

    def result(self, carry: Carry) -> jax.Array:
        """x, after the last call."""
        return carry['x']


def _intervals(sigmas: np.ndarray) -> Iterator[tuple[float, float]]:
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2 or (np.diff(sigmas) >= 0).any() or sigmas[-1] < 0:
        raise UserError(
            f'sigmas are {np.array2string(sigmas, threshold=8)}; '
            'give two or more, descending, none negative'
        )
    return zip(sigmas[:-1].tolist(), sigmas[1:].tolist())


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {k: v if v.dtype == bool else v.astype(np.float32) for k, v in columns.items()}


def _denoised(denoise: Denoise, x: jax.Array, sigma: jax.Array) -> jax.Array:
    return denoise(x, jnp.full(x.shape[:1], sigma, jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerEDMSampler(Sampler):
    """Euler's method, with noise put back ('churn') while s_tmin <= sigma <= s_tmax.

    Source: Karras et al. 2022, algorithm 2 without the correction; sgm's EulerEDMSampler.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float('inf')
    s_noise: float = 1.0

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    def churn(self, sigma: float, steps: int) -> tuple[float, float]:
        """The raised sigma, and the deviation of the noise that raises it."""
        inside = self.s_tmin <= sigma <= self.s_tmax
        gamma = min(self.s_churn / steps, 2**0.5 - 1) if inside else 0.0
        return sigma * (1 + gamma), self.s_noise * sigma * (gamma * (2 + gamma)) ** 0.5

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for sigma, after in _intervals(sigmas):
            high, noise_scale = self.churn(sigma, len(sigmas) - 1)
            rows.append({'sigma': high, 'keep': after / high, 'noise_scale': noise_scale})
        return _columns(rows)

    def step(self, carry, denoise, scalars, noise):
        x = carry['x']
        if self.stochastic:
            x = x + scalars['noise_scale'] * noise
        D = _denoised(denoise, x, scalars['sigma'])
        return {'x': D + scalars['keep'] * (x - D)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunEDMSampler(EulerEDMSampler):
    """Euler's step, then again with the mean of the slopes at both ends; the last step has only one end.

    Source: Karras et al. 2022, algorithm 2; sgm's HeunEDMSampler.
    """

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for sigma, after in _intervals(sigmas):
            high, noise_scale = self.churn(sigma, len(sigmas) - 1)
            row = {'sigma': high, 'dt': after - high, 'noise_scale': noise_scale, 'second': False}
            rows.append(row)
            if after > 0:
                rows.append(row | {'sigma': after, 'noise_scale': 0.0, 'second': True})
        return _columns(rows)

    def init(self, x):
        return {'x': x, 'start': x, 'slope': jnp.zeros_like(x)}

    def step(self, carry, denoise, scalars, noise):
        x, second = carry['x'], scalars['second']
        if self.stochastic:
            x = x + scalars['noise_scale'] * noise
        slope = (x - _denoised(denoise, x, scalars['sigma'])) / scalars['sigma']
        start = jnp.where(second, carry['start'], x)
        slope = jnp.where(second, (carry['slope'] + slope) / 2, slope)
        return {'x': start + scalars['dt'] * slope, 'start': start, 'slope': slope}


def _ancestral(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """(down, up): where a deterministic step ends, and the noise that then leads to `after`."""
    up = min(after, eta * after * (1 - (after / sigma) ** 2) ** 0.5)
    return (after**2 - up**2) ** 0.5, up


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerAncestralSampler(Sampler):
    """Euler's method to below the next sigma, and noise to come back up; eta = 0 is Euler's alone.

    Source: Song et al. 2021 (DDIM), equation 16, written for sigmas; sgm's EulerAncestralSampler.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for sigma, after in _intervals(sigmas):
            down, up = _ancestral(sigma, after, self.eta)
            rows.append({'sigma': sigma, 'keep': down / sigma, 'noise_scale': self.s_noise * up})
        return _columns(rows)

    def step(self, carry, denoise, scalars, noise):
        x = carry['x']
        D = _denoised(denoise, x, scalars['sigma'])
        x = D + scalars['keep'] * (x - D)
        return {'x': x + scalars['noise_scale'] * noise if self.stochastic else x}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMPP2SAncestralSampler(EulerAncestralSampler):
    """DPM-Solver++(2S): the denoised x at the middle of the step (in log sigma) leads the whole step.

    Source: Lu et al. 2022b, algorithm 1, with ancestral noise; sgm's DPMPP2SAncestralSampler.
    """

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for sigma, after in _intervals(sigmas):
            down, up = _ancestral(sigma, after, self.eta)
            whole = {'keep': down / sigma, 'noise_scale': self.s_noise * up}
            if down > 0:
                middle = (sigma * down) ** 0.5
                half = {'keep': middle / sigma, 'noise_scale': 0.0}
                rows.append({'sigma': sigma, 'second': False, **half})
                rows.append({'sigma': middle, 'second': True, **whole})
            else:
                rows.append({'sigma': sigma, 'second': False, **whole})
        return _columns(rows)

    def init(self, x):
        return {'x': x, 'start': x}

    def step(self, carry, denoise, scalars, noise):
        D = _denoised(denoise, carry['x'], scalars['sigma'])
        start = jnp.where(scalars['second'], carry['start'], carry['x'])
        x = D + scalars['keep'] * (start - D)
        x = x + scalars['noise_scale'] * noise if self.stochastic else x
        return {'x': x, 'start': start}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMPP2MSampler(Sampler):
    """DPM-Solver++(2M): the last two denoised x, extrapolated in log sigma, lead the step.

    The first and the last step (to sigma 0) use one. Source: Lu et al. 2022b, algorithm 2; sgm's
    DPMPP2MSampler.
    """

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        rows, before = [], None
        for sigma, after in _intervals(sigmas):
            inner = before is not None and after > 0
            ahead = np.log(sigma / after) / np.log(before / sigma) / 2 if inner else 0.0
            rows.append({'sigma': sigma, 'keep': after / sigma, 'ahead': ahead})
            before = sigma
        return _columns(rows)

    def init(self, x):
        return {'x': x, 'denoised': jnp.zeros_like(x)}

    def step(self, carry, denoise, scalars, noise):
        D = _denoised(denoise, carry['x'], scalars['sigma'])
        ahead = D + scalars['ahead'] * (D - carry['denoised'])
        return {'x': ahead + scalars['keep'] * (carry['x'] - ahead), 'denoised': D}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMultistepSampler(Sampler):
    """Adams-Bashforth on the uneven sigmas: the last `order` slopes, each times its integrated basis.

    Source: Hairer, Norsett & Wanner 1993, section III.5; sgm's LinearMultistepSampler.
    """

    order: int = 4

    def __post_init__(self):
        if self.order < 1:
            raise UserError(f'order of linear_multistep is {self.order}; give 1 or more')

    def plan(self, sigmas: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for i, (sigma, after) in enumerate(_intervals(sigmas)):
            known = np.asarray(sigmas[max(0, i + 1 - self.order) : i + 1], np.float64)[::-1]
            weights = np.zeros(self.order)
            weights[: len(known)] = _lagrange_integrals(known, sigma, after)
            rows.append({'sigma': sigma, 'weights': weights})
        return _columns(rows)

    def init(self, x):
        return {'x': x, 'slopes': jnp.zeros((self.order, *x.shape), x.dtype)}

    def step(self, carry, denoise, scalars, noise):
        x = carry['x']
        slope = (x - _denoised(denoise, x, scalars['sigma'])) / scalars['sigma']
        slopes = jnp.concatenate([slope[None], carry['slopes'][:-1]])
        weights = scalars['weights'].reshape(-1, *(1,) * x.ndim)
        return {'x': x + (weights * slopes).sum(0), 'slopes': slopes}


def _lagrange_integrals(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """The integral from start to end of each Lagrange basis polynomial of the nodes."""
    # Gauss-Legendre with as many points as nodes is exact for polynomials of this degree.
    points, weights = np.polynomial.legendre.leggauss(len(nodes))
    half = (end - start) / 2
    at = start + half * (1 + points)
    basis = [
        np.prod([(at - other) / (node - other) for other in nodes if other != node], axis=0)
        for node in nodes
    ]
    return np.array([(half * weights * values).sum() for values in basis])


SAMPLERS = {
    'euler_edm': EulerEDMSampler,
    'heun_edm': HeunEDMSampler,
    'euler_ancestral': EulerAncestralSampler,
    'dpmpp2s_ancestral': DPMPP2SAncestralSampler,
    'dpmpp2m': DPMPP2MSampler,
    'linear_multistep': LinearMultistepSampler,
}
