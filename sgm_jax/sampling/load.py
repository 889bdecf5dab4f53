"""A model from its files, ready to sample: `sgm_jax.load`."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sgm_jax.config import load_config
from sgm_jax.engines import DiffusionEngine, Engine, build
from sgm_jax.engines.model import check_pixels
from sgm_jax.engines.structure import to_uint8
from sgm_jax.engines.tasks import conditioning_frames
from sgm_jax.errors import UserError
from sgm_jax.interop import checkpoint_files, hub, workdir_files
from sgm_jax.sampling.media import read_image, resize_crop
from sgm_jax.sampling.recognise import config_of

PyTree = Any
Image = str | pathlib.Path | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """An engine with its parameters. Images are uint8 (b, h, w, 3), videos (b, t, h, w, 3)."""

    engine: Engine
    params: PyTree
    frozen: PyTree

    def sample(
        self,
        *,
        image: Image | Sequence[Image],
        steps: int | None = None,
        seed: int = 0,
        fps: int | None = None,
        motion_bucket: float | None = None,
        cond_aug: float | None = None,
        num_frames: int | None = None,
        decode_chunk: int | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Clips that begin with the given pictures. What is not given is `config.sample`'s.

        Args:
          image: a path or uint8 (h, w, 3), or several; cropped at the centre and scaled to the size.
          steps: of the sampler.
          seed: of all noise.
          fps: frames per second that the model is told (one less, as it was trained).
          motion_bucket: how much should move, 0 to 255.
          cond_aug: strength of the noise on the picture; 0 for none.
          num_frames: of each clip.
          decode_chunk: frames decoded at once; fewer need less memory.
          height, width: pixels.
          progress: called with (network calls done, calls in all).

        Returns:
          uint8 (b, num_frames, height, width, 3).

        Raises:
          UserError: a picture cannot be read, or a number is out of range.
        """
        if not isinstance(self.engine, DiffusionEngine):
            raise UserError(
                'this is a first stage: it encodes and decodes, but has nothing to sample'
            )
        settings = self.engine.sampling
        pick = lambda value, name: getattr(settings, name) if value is None else value
        numbers = dict(
            steps=pick(steps, 'steps'),
            num_frames=self.engine.task.num_frames if num_frames is None else num_frames,
            decode_chunk=pick(decode_chunk, 'decode_chunk') or self.engine.task.num_frames,
            fps=pick(fps, 'fps'),
        )
        for name, value in numbers.items():
            if value < 1:
                raise UserError(f'{name} is {value}; give 1 or more')
        motion, aug = pick(motion_bucket, 'motion_bucket'), pick(cond_aug, 'cond_aug')
        if not 0 <= motion <= 255:
            raise UserError(f'motion_bucket is {motion}; give 0 (still) to 255')
        if aug < 0:
            raise UserError(f'cond_aug is {aug}; give 0 or more')
        size = (pick(height, 'height'), pick(width, 'width'))
        check_pixels(self.engine.factor, *size)
        images = _read(image, size)
        engine = self._with_frames(numbers['num_frames'])
        batch, sample_key = told(
            images, fps=numbers['fps'], motion_bucket=motion, cond_aug=aug, seed=seed
        )
        z = engine.sample_latents(
            self.params,
            self.frozen,
            batch,
            sample_key,
            size=size,
            steps=numbers['steps'],
            progress=progress,
        )
        frames = engine.decode(self.params, self.frozen, z, chunk=numbers['decode_chunk'])
        return to_uint8(frames).reshape(len(images), -1, *size, 3)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The likeliest latents (b, h/f, w/f, z) of uint8 images, scaled as the network sees them."""
        images = np.asarray(images)
        check_pixels(self.engine.factor, *images.shape[1:3])
        return np.asarray(self.engine.encode(self.params, self.frozen, _to_float(images)))

    def decode(self, latents: np.ndarray, *, decode_chunk: int | None = None) -> np.ndarray:
        """The uint8 images of latents (b, h, w, z); of a video model, of the frames of whole clips."""
        latents = jnp.asarray(latents)
        return to_uint8(self.engine.decode(self.params, self.frozen, latents, chunk=decode_chunk))

    def _with_frames(self, num_frames: int) -> DiffusionEngine:
        # Kept, for an engine holds what it has compiled.
        cache = self.__dict__.setdefault('_engines', {self.engine.task.num_frames: self.engine})
        return cache.setdefault(num_frames, self.engine.with_frames(num_frames))


def load(
    path: str | pathlib.Path, config: ml_collections.ConfigDict | str | None = None
) -> LoadedModel:
    """A model from a workdir or a published checkpoint.

    Args:
      path: the workdir of a run (its averaged weights are taken), or a published checkpoint, as
        `interop.open_tensors` takes it.
      config: a config, or 'FILE.py[:VARIANT]'. By default a workdir's own, and for a published checkpoint
        the one that its tensors call for.

    Raises:
      UserError: nothing is there, it is of an unknown kind, or its tensors do not fit the config.
    """
    path = hub.local(path)
    if isinstance(config, str):
        config = load_config(config)
    if workdir_files.is_workdir(path):
        engine = build(config if config is not None else workdir_files.read_config(path))
        wanted = jax.eval_shape(engine.init, jax.random.key(0))
        params = workdir_files.read_ema(path, wanted)
    else:
        if not checkpoint_files.is_checkpoint(path):
            there = 'it has no config.json' if path.is_dir() else 'no such file or folder'
            there = there if path.is_dir() or not path.exists() else 'another kind of file'
            raise UserError(
                f'{path}: neither the workdir of a run nor a .safetensors or .ckpt file ({there})'
            )
        config = ml_collections.ConfigDict((config or config_of(path)).to_dict())
        if config.model.name != 'diffusion':
            raise UserError(
                f'{path}: the config is of {config.model.name!r}; give that of a diffusion model'
            )
        config.model.update(checkpoint=str(path), first_stage_checkpoint='', from_scratch=False)
        engine = build(config)
        params = jax.device_put(engine.pretrained())
    frozen = jax.device_put(engine.init_frozen(jax.random.key(0), training=False))
    return LoadedModel(engine=engine, params=params, frozen=frozen)


def told(
    images: np.ndarray, *, fps: int, motion_bucket: float, cond_aug: float, seed: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The conditioner's batch for uint8 first frames (b, h, w, 3), and the key of the sampler's noise."""
    aug_key, sample_key = jax.random.split(jax.random.key(seed))
    every = lambda value: jnp.full((len(images),), value, jnp.float32)
    return {
        'fps_id': every(fps - 1),
        'motion_bucket_id': every(motion_bucket),
        **conditioning_frames(jnp.asarray(_to_float(images)), every(cond_aug), aug_key),
    }, sample_key


def _read(image: Image | Sequence[Image], size: tuple[int, int]) -> np.ndarray:
    several = isinstance(image, Sequence) and not isinstance(image, str)
    several = several or (isinstance(image, np.ndarray) and image.ndim == 4)
    images = list(image) if several else [image]
    if not images:
        raise UserError('no picture was given; give image=')
    return np.stack([_read_one(x, size) for x in images])


def _read_one(image: Image, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(image, size)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f'pictures are uint8 (h, w, 3), got {image.dtype} {image.shape}')
    return resize_crop(image, size)


def _to_float(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f'pictures are uint8 (0 to 255), got {images.dtype}')
    return images.astype(np.float32) / 127.5 - 1.0
