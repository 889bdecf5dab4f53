"""Videos from around the object in a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.conditioning import cameras
from sgm_jax.engines.tasks import CAMERAS, conditioning_frames
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import (
    Image,
    at_least_one,
    check_seed,
    each,
    not_negative,
    to_float,
)
from sgm_jax.sampling.subjects import prepare
from sgm_jax.sampling.videos import draw

if TYPE_CHECKING:
    from sgm_jax.sampling.load import LoadedModel


def sample_orbits(
    *,
    model: LoadedModel,
    image: Image | Sequence[Image],
    elevations: float | Sequence[float] | None = None,
    azimuths: Sequence[float] | None = None,
    orbit: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    cond_aug: float | None = None,
    frame_ratio: float | None = None,
    remove_background: bool | None = None,
    fps: int | None = None,
    num_frames: int | None = None,
    decode_chunk: int | None = None,
    decode_overlap: int | None = None,
    height: int | None = None,
    width: int | None = None,
    sampler: str | None = None,
    discretization: str | None = None,
    guider: str | None = None,
    scale: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Views from around what is in the given pictures. What is not given is `config.sample`'s.

    The last view is the given picture itself, as sgm has it.

    Args:
      model: of an orbit model.
      image: a path or uint8 (h, w, 3) or, with a mask, (h, w, 4), or several.
      elevations: degrees in [-90, 90], one for all views or one for each.
      azimuths: degrees in [0, 360], one for each view, in order; the given view has the last.
      orbit: instead of the two, 'static' or 'dynamic' (at heights around the one elevation).
      steps: of the sampler.
      seed: of all noise, and of a dynamic orbit.
      cond_aug: strength of the noise on the picture.
      frame_ratio, remove_background: how the object is cut out and framed; see `subjects.prepare`.
      fps: of a file that is written; the model is not told.
      num_frames, decode_chunk, decode_overlap, height, width: as for videos.
      sampler, discretization, guider, scale: as for videos.
      progress: called with (network calls done, calls in all).

    Returns:
      uint8 (n, num_frames, height, width, 3).

    Raises:
      UserError: a picture cannot be read or is empty, or numbers are out of range or of order.
    """
    settings = model.engine.sampling
    pick = lambda value, name: getattr(settings, name) if value is None else value
    frames = model.engine.task.num_frames if num_frames is None else num_frames
    numbers = dict(
        steps=pick(steps, 'steps'),
        num_frames=frames,
        decode_chunk=pick(decode_chunk, 'decode_chunk') or frames,
        fps=pick(fps, 'fps'),
    )
    at_least_one(**numbers)
    check_seed(seed)
    aug, overlap = pick(cond_aug, 'cond_aug'), pick(decode_overlap, 'decode_overlap')
    not_negative(cond_aug=aug, decode_overlap=overlap)
    path = _path(model, frames, elevations, azimuths, orbit, seed)
    size = (pick(height, 'height'), pick(width, 'width'))
    model.check_size(size)
    ratio = pick(frame_ratio, 'frame_ratio')
    images = np.stack(
        [
            prepare(x, size, frame_ratio=ratio, remove_background=remove_background)
            for x in each(image)
        ]
    )
    engine = model.with_frames(frames)
    sampling = engine.sampling.with_choices(
        sampler=sampler,
        discretization=discretization,
        guider=guider,
        scale=scale,
        num_frames=frames,
        steps=numbers['steps'],
        decode_chunk=numbers['decode_chunk'],
        decode_overlap=overlap,
    )
    views = {key: np.tile(angles, len(images)) for key, angles in path.entries().items()}
    batch, keys = told(images, views, cond_aug=aug, seed=seed)
    views = draw(
        model,
        engine,
        batch,
        keys,
        size=size,
        sampling=sampling,
        progress=progress,
    )
    views[:, -1] = images
    return views


def told(
    images: np.ndarray, views: Mapping[str, np.ndarray], *, cond_aug: float, seed: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The conditioner's batch for uint8 pictures (n, h, w, 3) and the cameras of all views (n * t,) each, and
    the keys of their noise.
    """
    aug_key, sample_key = jax.random.split(jax.random.key(seed))
    aug = jnp.full((len(images),), cond_aug, jnp.float32)
    return {
        **conditioning_frames(jnp.asarray(to_float(images)), aug, aug_key),
        **{key: jnp.asarray(angles) for key, angles in views.items()},
    }, jax.random.split(sample_key, len(images))


def _path(model, frames: int, elevations, azimuths, preset: str | None, seed: int) -> cameras.Orbit:
    """The cameras that the options describe, if this model can be told any."""
    given = {'elevations': elevations, 'azimuths': azimuths, 'orbit': preset}
    given = [name for name, value in given.items() if value is not None]
    if given and not set(CAMERAS) <= model.engine.structure.shape.conditioner.reads:
        raise UserError(
            f'this model goes round its own way and takes no {given[0]}; use one of SV3D_p, or leave it out'
        )
    elevation = model.engine.sampling.elevation
    if preset is None:
        return cameras.orbit(frames, elevation if elevations is None else elevations, azimuths)
    if azimuths is not None:
        raise UserError('--orbit goes without --azimuths; give one of the two')
    one = np.atleast_1d(np.asarray(elevation if elevations is None else elevations, np.float64))
    if len(one) != 1:
        raise UserError(
            f'--orbit goes with one elevation, not {len(one)}; leave one of the two out'
        )
    return cameras.preset_orbit(preset, frames, elevation=float(one[0]), seed=seed)
