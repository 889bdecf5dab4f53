"""Camera paths around an object: what SV3D is told of each view, from angles in degrees.

An azimuth is where the camera stands around the object, an elevation how high above its equator. The last
view of a path is the one that is given, and the path ends there. Source: Voleti et al. 2024 (SV3D,
arXiv:2403.12008), section 3; sgm's scripts/sampling/simple_video_sample.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sgm_jax.errors import UserError

# Two azimuths that differ by less, degrees, are the same.
_SAME = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Orbit:
    """Elevations and azimuths in degrees, (num_frames,) float64 each; made by the functions below."""

    elevations: np.ndarray
    azimuths: np.ndarray

    def __len__(self) -> int:
        return len(self.azimuths)

    @property
    def polars_rad(self) -> np.ndarray:
        """float32 (num_frames,): the angle from the pole, 90 degrees less the elevation."""
        return np.deg2rad(90.0 - self.elevations).astype(np.float32)

    @property
    def azimuths_rad(self) -> np.ndarray:
        """float32 (num_frames,): from the last view on, in [0, 2 pi); the last is 0."""
        return np.deg2rad(relative(self.azimuths)).astype(np.float32)

    def entries(self) -> dict[str, np.ndarray]:
        """The two entries of a batch."""
        return {'polars_rad': self.polars_rad, 'azimuths_rad': self.azimuths_rad}


def relative(azimuths: np.ndarray) -> np.ndarray:
    """Azimuths counted from the last one, in [0, 360)."""
    turned = (np.asarray(azimuths, np.float64) - azimuths[-1]) % 360.0
    # A hair below the last one is the last one, not a whole turn away.
    return np.where(turned > 360.0 - _SAME, 0.0, turned)


def orbit(
    num_frames: int,
    elevations: float | Sequence[float] = 10.0,
    azimuths: Sequence[float] | None = None,
) -> Orbit:
    """A path from what a user gives, checked.

    Args:
      num_frames: of the video.
      elevations: degrees in [-90, 90]: one for all views, or one for each.
      azimuths: degrees in [0, 360], one for each view, in the order in which the camera goes round, once at
        most; None for equal steps that end at the given view.

    Raises:
      UserError: too few or too many, out of range, or not in order.
    """
    if num_frames < 1:
        raise UserError(f'num_frames is {num_frames}; give 1 or more')
    high = np.atleast_1d(np.asarray(elevations, np.float64))
    if len(high) == 1:
        high = np.repeat(high, num_frames)
    _check_count('elevations', high, num_frames, 'give one for all frames, or one for each')
    _check_range('elevation', high, -90.0, 90.0)
    if azimuths is None:
        return Orbit(elevations=high, azimuths=_even(num_frames))
    around = np.asarray(azimuths, np.float64).reshape(-1)
    _check_count('azimuths', around, num_frames, 'give one for each frame')
    _check_range('azimuth', around, 0.0, 360.0)
    before = relative(around)[:-1]
    # The first may be where the last is: a whole turn, seen from both of its ends.
    falls = np.flatnonzero(np.diff(before) < 0)
    if len(falls):
        at = int(falls[0])
        raise UserError(
            f'azimuths are not in order: {around[at + 1]:g} follows {around[at]:g} on the way to the last '
            f'one, {around[-1]:g}; sort them from 0 to 360'
        )
    return Orbit(elevations=high, azimuths=around)


def static_orbit(num_frames: int, elevation: float = 10.0) -> Orbit:
    """Equal steps at one height, as sgm samples: 360 / n, 2 * 360 / n, ... and 0, where the input view is."""
    return orbit(num_frames, elevation)


def dynamic_orbit(
    num_frames: int,
    rng: np.random.Generator,
    *,
    elevation: float = 10.0,
    swing: float = 15.0,
    azimuth_noise: float = 4.0,
    limits: tuple[float, float] = (-5.0, 60.0),
) -> Orbit:
    """Uneven steps at a height that rises and falls, and ends where it began.

    The paper perturbs a static orbit: small noise on the azimuths, and on the elevations a random sum of
    sinusoids, so that the path is smooth and closes. It gives no numbers; those here are ours.

    Args:
      rng: what is drawn is drawn from it.
      elevation: of the given view, degrees.
      swing: the most that the sinusoids add up to, degrees.
      azimuth_noise: standard deviation, degrees; views that overtake each other are put back in order.
      limits: of all elevations, degrees.
    """
    steps = _even(num_frames)[:-1] + rng.normal(0.0, azimuth_noise, num_frames - 1)
    azimuths = np.append(np.sort(steps % 360.0), 0.0)
    turns = 2 * np.pi * np.arange(1, num_frames + 1) / num_frames
    waves = np.arange(1, 4)
    weights = rng.dirichlet(np.ones(len(waves))) * rng.uniform(-1.0, 1.0, len(waves)) * swing
    elevations = elevation + weights @ np.sin(waves[:, None] * turns)
    return Orbit(elevations=np.clip(elevations, *limits), azimuths=azimuths)


PRESETS = {'static': static_orbit, 'dynamic': dynamic_orbit}


def preset_orbit(name: str, num_frames: int, *, elevation: float, seed: int) -> Orbit:
    """One of `PRESETS`; what is random in it comes from the seed.

    Raises:
      UserError: there is no such preset, or the elevation is out of range.
    """
    if name not in PRESETS:
        raise UserError(f'orbit is {name!r}; choose one of: {", ".join(PRESETS)}')
    _check_range('elevation', np.array([elevation]), -90.0, 90.0)
    if name == 'static':
        return static_orbit(num_frames, elevation)
    limits = (min(elevation, -5.0), max(elevation, 60.0))
    rng = np.random.default_rng(seed)
    return dynamic_orbit(num_frames, rng, elevation=elevation, limits=limits)


def _even(num_frames: int) -> np.ndarray:
    return np.linspace(0.0, 360.0, num_frames + 1)[1:] % 360.0


def _check_count(name: str, values: np.ndarray, wanted: int, remedy: str) -> None:
    if len(values) != wanted:
        raise UserError(f'{len(values)} {name} for {wanted} frames; {remedy}')


def _check_range(name: str, values: np.ndarray, low: float, high: float) -> None:
    outside = np.flatnonzero(~((values >= low) & (values <= high)))
    if len(outside):
        raise UserError(
            f'the {name} of frame {outside[0] + 1} is {values[outside[0]]:g}; '
            f'give degrees from {low:g} to {high:g}'
        )
