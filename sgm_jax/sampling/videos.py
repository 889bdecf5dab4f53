"""Videos from pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.engines.structure import to_uint8
from sgm_jax.engines.tasks import conditioning_frames
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import (
    Image,
    at_least_one,
    check_seed,
    not_negative,
    read_images,
    to_float,
)

if TYPE_CHECKING:
    from sgm_jax.engines import DiffusionEngine
    from sgm_jax.engines.sampling import Sampling
    from sgm_jax.sampling.load import LoadedModel


def sample_videos(
    *,
    model: LoadedModel,
    image: Image | Sequence[Image],
    steps: int | None = None,
    seed: int = 0,
    fps: int | None = None,
    motion_bucket: float | None = None,
    cond_aug: float | None = None,
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
    """Clips that begin with the given pictures. What is not given is `config.sample`'s.

    Args:
      model: of a video model.
      image: a path or uint8 (h, w, 3), or several; cropped at the centre and scaled to the size.
      steps: of the sampler.
      seed: of all noise.
      fps: frames per second that the model is told (one less, as it was trained).
      motion_bucket: how much should move, 0 to 255.
      cond_aug: strength of the noise on the picture; 0 for none.
      num_frames: of each clip.
      decode_chunk: frames decoded at once; fewer need less memory.
      decode_overlap: frames on either side of those that a temporal decoder sees besides them.
      height, width: pixels.
      sampler, discretization, guider: others, by name, with their defaults.
      scale: the strength of the guidance, at most.
      progress: called with (network calls done, calls in all).

    Returns:
      uint8 (n, num_frames, height, width, 3).

    Raises:
      UserError: a picture cannot be read, or a number is out of range.
    """
    engine = model.engine
    settings = engine.sampling
    pick = lambda value, name: getattr(settings, name) if value is None else value
    numbers = dict(
        steps=pick(steps, 'steps'),
        num_frames=engine.task.num_frames if num_frames is None else num_frames,
        decode_chunk=pick(decode_chunk, 'decode_chunk') or engine.task.num_frames,
        fps=pick(fps, 'fps'),
    )
    at_least_one(**numbers)
    check_seed(seed)
    overlap = pick(decode_overlap, 'decode_overlap')
    not_negative(decode_overlap=overlap)
    motion, aug = pick(motion_bucket, 'motion_bucket'), pick(cond_aug, 'cond_aug')
    if not 0 <= motion <= 255:
        raise UserError(f'motion_bucket is {motion}; give 0 (still) to 255')
    not_negative(cond_aug=aug)
    size = (pick(height, 'height'), pick(width, 'width'))
    model.check_size(size)
    images = read_images(image, size)
    engine = model.with_frames(numbers['num_frames'])
    sampling = engine.sampling.with_choices(
        sampler=sampler,
        discretization=discretization,
        guider=guider,
        scale=scale,
        num_frames=numbers['num_frames'],
        steps=numbers['steps'],
        decode_chunk=numbers['decode_chunk'],
        decode_overlap=overlap,
    )
    batch, keys = told(images, fps=numbers['fps'], motion_bucket=motion, cond_aug=aug, seed=seed)
    return draw(
        model,
        engine,
        batch,
        keys,
        size=size,
        sampling=sampling,
        progress=progress,
    )


def draw(
    model: LoadedModel,
    engine: DiffusionEngine,
    batch: dict[str, jax.Array],
    keys: jax.Array,
    *,
    size: tuple[int, int],
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """uint8 (n, num_frames, *size, 3): clips of a conditioner's batch, one for each of the keys (n,)."""
    weights = model.params, model.frozen
    z = engine.sample_latents(
        *weights,
        engine.condition(*weights, batch, guided=sampling.guided),
        keys,
        size=size,
        sampling=sampling,
        progress=progress,
    )
    chunk, overlap = sampling.decode_chunk, sampling.decode_overlap
    # To bytes chunk by chunk: floats of all frames would be the largest array of all.
    parts = engine.decoded(*weights, z, chunk=chunk, overlap=overlap)
    return np.concatenate([to_uint8(part) for part in parts], 1)


def told(
    images: np.ndarray, *, fps: int, motion_bucket: float, cond_aug: float, seed: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The conditioner's batch for uint8 first frames (n, h, w, 3), and the keys of their noise."""
    aug_key, sample_key = jax.random.split(jax.random.key(seed))
    every = lambda value: jnp.full((len(images),), value, jnp.float32)
    return {
        'fps_id': every(fps - 1),
        'motion_bucket_id': every(motion_bucket),
        **conditioning_frames(jnp.asarray(to_float(images)), every(cond_aug), aug_key),
    }, jax.random.split(sample_key, len(images))
