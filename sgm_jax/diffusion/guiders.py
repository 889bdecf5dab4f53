"""Classifier-free guidance: a guider is a schedule of scales, and `guide` is the one place that uses them.

Source of the guidance itself: Ho & Salimans 2022, equation 6.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.errors import UserError

FUSINGS = {'mean': np.mean, 'multiply': np.prod, 'max': np.max}


class Guider(Protocol):
    """How strongly each frame of a clip is guided."""

    def scales(self) -> np.ndarray | None:
        """float32 (1,) or (num_frames,), or None: there is no unconditional pass."""
        ...


def guide(
    denoise: Callable[[jax.Array, jax.Array, Mapping], jax.Array],
    x: jax.Array,
    sigma: jax.Array,
    cond: Mapping[str, jax.Array],
    uncond: Mapping[str, jax.Array] | None,
    scales: jax.Array | None,
) -> jax.Array:
    """The guided denoised x: u + s (c - u), with one call of `denoise` on a doubled batch.

    `scales` may be traced: another strength is the same program.

    Args:
      denoise: a function of (x, sigma, cond). It sees the unconditional half first, so whatever else it
        gives its network per clip (an image_only_indicator, say) it has to give for 2b clips.
      x: (b, ...), or ((b t), ...) for clips of t frames.
      sigma: (x.shape[0],).
      cond: arrays by name ('vector', 'crossattn', 'concat', ...), batch first.
      uncond: the same names and shapes; not read when scales is None.
      scales: (1,) or (t,) from a guider; None calls `denoise` once with cond alone.

    Raises:
      UserError: cond and uncond have different names, or the batch is not a whole number of clips.
    """
    if scales is None:
        return denoise(x, sigma, cond)
    if uncond is None or set(cond) != set(uncond):
        raise UserError(
            f'guidance needs the same conditions with and without: cond has {sorted(cond)}, '
            f'uncond has {sorted(uncond or ())}; give both, or use the identity guider'
        )
    samples, frames = x.shape[0], len(scales)
    if samples % frames:
        raise UserError(
            f'the guider has {frames} frames, but the batch has {samples}; '
            'set its num_frames to the frames of a clip'
        )
    twice = lambda u, c: jnp.concatenate([u, c])
    both = {name: twice(uncond[name], cond[name]) for name in cond}
    u, c = jnp.split(denoise(twice(x, x), twice(sigma, sigma), both), 2)
    s = jnp.tile(scales, samples // frames).reshape(samples, *(1,) * (x.ndim - 1))
    return u + s * (c - u)


def _triangle(position: np.ndarray, period: float = 1.0) -> np.ndarray:
    """A wave from 0 at the whole periods to 1 between them."""
    turns = position / period
    return 2 * np.abs(turns - np.floor(turns + 0.5))


def _between(low: float, high: float, position: np.ndarray) -> np.ndarray:
    return (low + (high - low) * position).astype(np.float32)


def _check_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise UserError(f'num_frames of a guider is {num_frames}; give 1 or more')


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityGuider:
    """No guidance, and half the work. Source: sgm's IdentityGuider."""

    def scales(self) -> None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VanillaCFG:
    """One scale for all. Source: sgm's VanillaCFG."""

    scale: float

    def scales(self) -> np.ndarray:
        return np.array([self.scale], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearPredictionGuider:
    """From min_scale at the first frame, the given one, to max_scale at the last.

    Source: Blattmann et al. 2023 (Stable Video Diffusion), image-to-video; sgm's LinearPredictionGuider.
    """

    max_scale: float
    num_frames: int
    min_scale: float = 1.0

    def __post_init__(self):
        _check_frames(self.num_frames)

    def scales(self) -> np.ndarray:
        return _between(self.min_scale, self.max_scale, np.linspace(0, 1, self.num_frames))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrianglePredictionGuider:
    """Up to max_scale in the middle of each period and back: an orbit starts and ends at the given view.

    Several periods are fused by 'max', 'mean' or 'multiply'. Source: Voleti et al. 2024 (SV3D),
    triangular CFG scaling; sgm's TrianglePredictionGuider.
    """

    max_scale: float
    num_frames: int
    min_scale: float = 1.0
    period: float | tuple[float, ...] = 1.0
    period_fusing: str = 'max'

    def __post_init__(self):
        _check_frames(self.num_frames)
        if self.period_fusing not in FUSINGS:
            raise UserError(
                f'period_fusing is {self.period_fusing!r}; choose one of: {", ".join(FUSINGS)}'
            )

    def scales(self) -> np.ndarray:
        position = np.linspace(0, 1, self.num_frames)
        waves = [_triangle(position, period) for period in np.atleast_1d(self.period)]
        return _between(self.min_scale, self.max_scale, FUSINGS[self.period_fusing](waves, axis=0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrapezoidPredictionGuider:
    """A rise over the first edge_perc of the frames and a fall over the last; between them, one.

    The ones in the middle, whatever max_scale is, are sgm's. Source: sgm's TrapezoidPredictionGuider.
    """

    max_scale: float
    num_frames: int
    min_scale: float = 1.0
    edge_perc: float = 0.1

    def __post_init__(self):
        _check_frames(self.num_frames)
        if not 0 <= self.edge_perc <= 0.5:
            raise UserError(f'edge_perc is {self.edge_perc}; give a share of 0 to 0.5')

    def scales(self) -> np.ndarray:
        edge = int(self.num_frames * self.edge_perc)
        rise = _between(self.min_scale, self.max_scale, np.linspace(0, 1, edge))
        middle = np.ones(self.num_frames - 2 * edge, np.float32)
        return np.concatenate([rise, middle, rise[::-1]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatiotemporalPredictionGuider:
    """For num_views views at each time: half a rise over time, half a triangle over the views.

    num_frames counts all the pictures, times first. Source: sgm's SpatiotemporalPredictionGuider.
    """

    max_scale: float
    num_frames: int
    num_views: int = 1
    min_scale: float = 1.0

    def __post_init__(self):
        _check_frames(self.num_frames)
        if self.num_views < 1 or self.num_frames % self.num_views:
            raise UserError(
                f'num_frames is {self.num_frames} and num_views is {self.num_views}; '
                'give a num_frames that is a multiple of num_views'
            )

    def scales(self) -> np.ndarray:
        time = np.linspace(0, 1, self.num_frames // self.num_views)
        view = _triangle(np.linspace(0, 1, self.num_views))
        position = (time[:, None] + view[None, :]) / 2
        return _between(self.min_scale, self.max_scale, position.ravel())


GUIDERS = {
    'identity': IdentityGuider,
    'vanilla_cfg': VanillaCFG,
    'linear': LinearPredictionGuider,
    'triangle': TrianglePredictionGuider,
    'trapezoid': TrapezoidPredictionGuider,
    'spatiotemporal': SpatiotemporalPredictionGuider,
}
