"""A model from its files, ready to sample: `sgm_jax.load`."""

import contextlib
import dataclasses
import gc
import inspect
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sgm_jax.config import check_keys, load_config
from sgm_jax.engines import DiffusionEngine, Engine, build
from sgm_jax.engines.devices import ONE, Devices, over_mesh
from sgm_jax.engines.model import check_pixels
from sgm_jax.engines.structure import to_uint8
from sgm_jax.engines.tasks import Images, ImageToOrbit, ImageToVideo
from sgm_jax.errors import UserError
from sgm_jax.interop import checkpoint_files, hub, workdir_files
from sgm_jax.parallel import mesh as meshes
from sgm_jax.sampling import precision
from sgm_jax.sampling.images import sample_images
from sgm_jax.sampling.inputs import to_float
from sgm_jax.sampling.orbits import sample_orbits
from sgm_jax.sampling.recognise import config_of
from sgm_jax.sampling.videos import sample_videos

PyTree = Any
SAMPLE = {ImageToVideo: sample_videos, ImageToOrbit: sample_orbits, Images: sample_images}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """An engine with its parameters. Pictures are uint8 (b, h, w, c), videos (b, t, h, w, c)."""

    engine: Engine
    params: PyTree
    frozen: PyTree

    def sample(self, **options: Any) -> np.ndarray:
        """Pictures or videos, as the model makes them: `sample_images`, `sample_videos` or `sample_orbits`.

        The keywords are those of the function; what is not given is `config.sample`'s.

        Returns:
          uint8 (n, height, width, c), or (n, num_frames, height, width, 3).

        Raises:
          UserError: an option that this kind of model does not have, or that is out of range.
        """
        parts = list(self.sample_batches(**options))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def sample_batches(self, **options: Any) -> Iterator[np.ndarray]:
        """`sample`, part by part as it is made: pictures by the batch; videos and orbits in one part."""
        given = {name: value for name, value in options.items() if value is not None}
        self.check_options({k: v for k, v in given.items() if k != 'progress'})
        made = self._draw(model=self, **given)
        return iter((made,)) if isinstance(made, np.ndarray) else made

    @property
    def channels(self) -> int:
        """Of the pictures, or frames, that `sample` gives; a first stage's have colours."""
        stage = self.engine.structure.shape.first_stage
        return self.engine.latent_channels if stage is None else 3

    @property
    def makes_videos(self) -> bool:
        """Whether `sample` gives videos, not pictures."""
        task = getattr(self.engine, 'task', None)
        return task is not None and task.num_frames is not None

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises a UserError for what `sample` would not take, or lacks."""
        draw = self._draw
        wanted = {**inspect.signature(draw).parameters}
        check_keys(options, [name for name in wanted if name != 'model'], where='this model')
        missing = [
            name
            for name, parameter in wanted.items()
            if parameter.default is parameter.empty and name not in {*options, 'model'}
        ]
        if missing:
            raise UserError(f'this model needs {missing[0]}; give --{missing[0]}')

    @property
    def _draw(self):
        if not isinstance(self.engine, DiffusionEngine):
            raise UserError(
                'this is a first stage: it encodes and decodes, but has nothing to sample'
            )
        return SAMPLE[type(self.engine.task)]

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises a UserError for a (height, width) in pixels that the model, or its mesh, does not divide."""
        check_pixels(self.engine.factor, *size)
        mesh = self.devices.mesh
        if mesh is not None:
            meshes.check_rows(self.engine.latent_size(size)[0], mesh)

    @property
    def devices(self) -> Devices:
        """What the weights lie on, and samples are made on."""
        return getattr(self.engine, 'devices', ONE)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The likeliest latents (b, h/f, w/f, z) of uint8 images, scaled as the network sees them."""
        images = np.asarray(images)
        self.check_size(images.shape[1:3])
        return np.asarray(self.engine.encode(self.params, self.frozen, to_float(images)))

    def decode(self, latents: np.ndarray, *, decode_chunk: int | None = None) -> np.ndarray:
        """The uint8 images of latents (b, h, w, z); of a video model, of the frames of whole clips."""
        latents = jnp.asarray(latents)
        return to_uint8(self.engine.decode(self.params, self.frozen, latents, chunk=decode_chunk))

    def with_frames(self, num_frames: int) -> DiffusionEngine:
        """The engine for clips of another length."""
        # Kept, for an engine holds what it has compiled.
        cache = self.__dict__.setdefault('_engines', {self.engine.task.num_frames: self.engine})
        return cache.setdefault(num_frames, self.engine.with_frames(num_frames))


def load(
    path: str | pathlib.Path,
    config: ml_collections.ConfigDict | str | None = None,
    *,
    dtype: str | None = None,
    mesh: Mapping[str, int] | None = None,
) -> LoadedModel:
    """A model from a workdir or a published checkpoint.

    Args:
      path: the workdir of a run (its averaged weights are taken), or a published checkpoint.
      config: a config, or 'FILE.py[:VARIANT]'. By default a workdir's own, and for a published checkpoint
        the one that its tensors call for.
      dtype: what the network and the text encoders are held and computed in: 'float32', 'bfloat16' or
        'float16'; the first stage stays as it is. None: weights as they are in the file, computed as the
        config says.
      mesh: sizes of the axes data, fsdp and context, one of which may be -1 (the rest): each weight is read
        into its parts on the devices, and samples are made over all of them. None: the first device.

    Raises:
      UserError: nothing is there, it is of an unknown kind, its tensors do not fit the config, or the mesh
        not the devices.
    """
    with _without_collector():
        return _load(hub.local(path), config, dtype, mesh)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Among thousands of new modules and arrays it looks for cycles again and again, and finds none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(
    path: pathlib.Path,
    config: ml_collections.ConfigDict | str | None,
    dtype: str | None,
    mesh: Mapping[str, int] | None,
) -> LoadedModel:
    if isinstance(config, str):
        config = load_config(config)
    workdir = workdir_files.is_workdir(path)
    if workdir:
        config = config if config is not None else workdir_files.read_config(path)
    else:
        _check_is_checkpoint(path)
        config = config or config_of(path)
    config = ml_collections.ConfigDict(config.to_dict())
    if not workdir:
        if config.model.name != 'diffusion':
            raise UserError(
                f'{path}: the config is of {config.model.name!r}; give that of a diffusion model'
            )
        # A first stage of its own goes before the checkpoint's, as in training.
        config.model.update(checkpoint=str(path), from_scratch=False)
    if dtype is not None:
        precision.compute_in(config, dtype)
    engine = build(config, sampling=True)
    engine = engine if mesh is None else over_mesh(engine, mesh)
    devices = getattr(engine, 'devices', ONE)
    if workdir:
        wanted = devices.abstract(jax.eval_shape(engine.init, jax.random.key(0)))
        params = precision.hold(workdir_files.read_ema(path, wanted), dtype)
        frozen = engine.init_frozen(jax.random.key(0), training=False)
        frozen = jax.tree.map(devices.put_weight, precision.hold(frozen, dtype))
    else:
        # Each as soon as it is read, and waited for: a file never lies in memory a second time, and what
        # it was read into is there for the next one.
        place = lambda entry, array: jax.block_until_ready(
            devices.put_weight(precision.held(entry.path, array, dtype))
        )
        params, frozen = engine.weights.all(place)
    return LoadedModel(engine=engine, params=params, frozen=frozen)


def _check_is_checkpoint(path: pathlib.Path) -> None:
    if not checkpoint_files.is_checkpoint(path):
        there = 'it has no config.json' if path.is_dir() else 'no such file or folder'
        there = there if path.is_dir() or not path.exists() else 'another kind of file'
        raise UserError(
            f'{path}: neither the workdir of a run nor a .safetensors file, a .ckpt file or a '
            f'diffusers folder ({there})'
        )
