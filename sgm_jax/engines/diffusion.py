"""The diffusion engine: one model, its training loss and its samples, as pure functions of parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.config import build, call, check_keys, plain
from sgm_jax.diffusion.denoiser import DenoiserLike
from sgm_jax.diffusion.discretization import Discretization
from sgm_jax.diffusion.drivers import sample
from sgm_jax.diffusion.families import make
from sgm_jax.diffusion.guiders import Guider, guide
from sgm_jax.diffusion.loss import StandardDiffusionLoss
from sgm_jax.diffusion.samplers import Sampler
from sgm_jax.engines.model import DiffusionModel, build_model, check_pixels
from sgm_jax.engines.protocol import Gradients, Players, gradients_of
from sgm_jax.engines.structure import PyTree, Structure, to_uint8
from sgm_jax.engines.tasks import TASKS, ImageToVideo, conditioning_frames
from sgm_jax.engines.weights import Weights
from sgm_jax.errors import UserError
from sgm_jax.parallel.compiler import jit

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """`config.sample`: how samples are drawn by sample.py, and for the pictures of a training run.

    Attributes:
      sampler, discretization, guider: nodes of those families; steps: how many the sampler takes.
      zero: the entries of the batch that the unconditional pass does not know.
      height, width: pixels.
      fps, motion_bucket, cond_aug: what the model is told.
      decode_chunk: frames that are decoded at once; 0 for all.
    """

    sampler: Sampler
    discretization: Discretization
    guider: Guider
    steps: int
    height: int
    width: int
    zero: tuple[str, ...] = ()
    fps: int = 7
    motion_bucket: float = 127
    cond_aug: float = 0.02
    decode_chunk: int = 0

    @classmethod
    def from_config(cls, node: Mapping, *, num_frames: int, known: tuple[str, ...]) -> 'Sampling':
        """From `config.sample`, for a conditioner that reads the entries `known`."""
        families = ('sampler', 'discretization', 'guider')
        parts = {
            name: make(name, node[name], where=f'sample.{name}', num_frames=num_frames)
            for name in families
            if name in node
        }
        sampling = call(cls, {**plain(node), **parts}, where='sample')
        check_keys(sampling.zero, known, where='sample.zero')
        return sampling


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiffusionEngine:
    """Trains and samples a DiffusionModel. Follows sgm.models.diffusion.DiffusionEngine."""

    structure: Structure
    denoiser: DenoiserLike
    objective: StandardDiffusionLoss
    task: ImageToVideo
    sampling: Sampling
    weights: Weights

    @classmethod
    def from_config(
        cls,
        *,
        network: Mapping,
        denoiser: Mapping,
        loss: Mapping,
        task: Mapping,
        conditioner: tuple = (),
        first_stage: Mapping = MappingProxyType({'name': 'none'}),
        scale_factor: float = 1.0,
        encode_chunk: int = 0,
        checkpoint: str = '',
        first_stage_checkpoint: str = '',
        from_scratch: bool = False,
        sample: Mapping,
    ) -> 'DiffusionEngine':
        """From `config.model` (its keys are these) and `config.sample`."""
        parts = dict(
            network=network,
            conditioner=conditioner,
            first_stage=first_stage,
            scale_factor=scale_factor,
            encode_chunk=encode_chunk,
        )
        trained = tuple(
            index for index, node in enumerate(conditioner) if node.get('is_trainable', False)
        )

        def trainable(path: tuple) -> bool:
            embedder = path[:2] == ('conditioner', 'embedders')
            return path[0] == 'network' or (embedder and path[2] in trained)

        structure = Structure(build=lambda keys: build_model(parts, keys), trainable=trainable)
        task = build(TASKS, task, where='model.task')
        sampling = Sampling.from_config(
            plain(sample),
            num_frames=task.num_frames,
            known=tuple(node['input_key'] for node in conditioner),
        )
        return cls(
            structure=structure,
            denoiser=make('denoiser', denoiser, where='model.denoiser'),
            objective=make('loss', loss, where='model.loss'),
            task=task,
            sampling=sampling,
            weights=Weights(
                structure=structure,
                checkpoint=checkpoint,
                first_stage_checkpoint=first_stage_checkpoint,
                from_scratch=from_scratch,
            ),
        )

    # Training.

    def init(self, key: jax.Array) -> PyTree:
        return self.structure.init(key)[0]

    def init_adversary(self, key: jax.Array) -> None:
        return None

    def init_frozen(self, key: jax.Array, *, training: bool = True) -> PyTree:
        return self.weights.frozen()

    def pretrained(self) -> PyTree | None:
        return self.weights.trainable()

    def check(self, record: Mapping[str, np.ndarray]) -> None:
        num_frames, height, width = record['jpg'].shape[:3]
        if num_frames != self.task.num_frames:
            raise UserError(
                f'data.num_frames is {num_frames} and model.task.num_frames is {self.task.num_frames}; '
                'give both the same value'
            )
        check_pixels(self.factor, height, width)

    def turn(self, step: int) -> str:
        """There is one player."""
        return ''

    def gradients(
        self, turn: str, players: Players, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> Gradients:
        return gradients_of(lambda params: self.loss(params, frozen, batch, key), players.params)

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A scalar to minimise and scalars to log; traceable."""
        model = self.structure.merge(params, frozen)
        task_key, encode_key, drop_key, noise_key, dropout_key = jax.random.split(key, 5)
        examples, num_frames = len(batch['jpg']), self.task.num_frames
        x, told = self.task.training_batch(batch, task_key)
        z = jax.lax.stop_gradient(model.encode(x, encode_key))
        cond = model.condition(told, key=drop_key, examples=examples, num_frames=num_frames)
        denoise = self._denoise(model, num_frames=num_frames, key=dropout_key)
        losses, _ = self.objective(noise_key, denoise, z, cond, num_frames=num_frames)
        loss = losses.mean()
        return loss, {'loss': loss}

    def _denoise(self, model: DiffusionModel, **inputs: Any) -> Callable:
        return lambda x, sigma, cond: self.denoiser(model.apply, x, sigma, cond, **inputs)

    # Sampling.

    def with_frames(self, num_frames: int) -> 'DiffusionEngine':
        """The same engine for clips of another length."""
        if num_frames == self.task.num_frames:
            return self
        guider = self.sampling.guider
        if hasattr(guider, 'num_frames'):
            guider = dataclasses.replace(guider, num_frames=num_frames)
        return dataclasses.replace(
            self,
            task=dataclasses.replace(self.task, num_frames=num_frames),
            sampling=dataclasses.replace(self.sampling, guider=guider),
        )

    def condition(
        self, params: PyTree, frozen: PyTree, batch: Batch
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """(cond, uncond) for the clips of a conditioner's batch."""
        return self._condition(params, frozen, dict(batch))

    def metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> dict[str, float]:
        """None: what a diffusion model makes of held-out examples is looked at."""
        return {}

    @functools.cached_property
    def _condition(self) -> Callable:
        def condition(params, frozen, batch):
            model = self.structure.merge(params, frozen)
            examples = len(next(iter(batch.values())))
            video = dict(examples=examples, num_frames=self.task.num_frames)
            return (
                model.condition(batch, **video),
                model.condition(batch, zero=self.sampling.zero, **video),
            )

        return jit(condition)

    def sample_latents(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        key: jax.Array,
        *,
        size: tuple[int, int],
        steps: int | None = None,
        scales: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> jax.Array:
        """Latents (b*t, h, w, c) for a conditioner's batch of b clips of `size` (height, width) pixels.

        `steps` and the guidance `scales` (per frame) may change from call to call without compiling again.
        """
        sampling = self.sampling
        cond, uncond = self.condition(params, frozen, batch)
        examples = len(next(iter(batch.values())))
        shape = (examples * self.task.num_frames, *self.latent_size(size), self.latent_channels)
        start_key, noise_key = jax.random.split(key)
        x = jax.random.normal(start_key, shape)
        scales = sampling.guider.scales() if scales is None else scales
        step = functools.partial(self._step, params, frozen, cond, uncond, scales)
        sigmas = sampling.discretization.sigmas(steps or sampling.steps)
        return sample(sampling.sampler, step, x, sigmas, noise_key, progress=progress)

    @functools.cached_property
    def _step(self) -> Callable:
        def step(params, frozen, cond, uncond, scales, carry, scalars, noise):
            model = self.structure.merge(params, frozen)
            single = self._denoise(model, num_frames=self.task.num_frames)
            guided = lambda x, sigma: guide(single, x, sigma, cond, uncond, scales)
            return self.sampling.sampler.step(carry, guided, scalars, noise)

        return jit(step)

    def encode(self, params: PyTree, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to their likeliest scaled latents."""
        return self._encode(params, frozen, images)

    @functools.cached_property
    def _encode(self) -> Callable:
        return jit(lambda params, frozen, x: self.structure.merge(params, frozen).encode(x))

    def decode(
        self, params: PyTree, frozen: PyTree, z: jax.Array, *, chunk: int | None = None
    ) -> jax.Array:
        """Scaled latents (b*t, h, w, c) to images, `chunk` frames of a clip at a time (all by default).

        The temporal decoder mixes the frames of a chunk, so a chunk of fewer than all frames changes the
        result a little at its edges; memory grows with the chunk only.
        """
        num_frames = self.task.num_frames
        clips = z.reshape(-1, num_frames, *z.shape[1:])
        chunk = min(chunk or num_frames, num_frames)
        parts = [
            self._decode(params, frozen, clips[:, start : start + chunk])
            for start in range(0, num_frames, chunk)
        ]
        images = jnp.concatenate(parts, 1)
        return images.reshape(-1, *images.shape[2:])

    @functools.cached_property
    def _decode(self) -> Callable:
        def decode(params, frozen, clips):
            model = self.structure.merge(params, frozen)
            frames = clips.reshape(-1, *clips.shape[2:])
            images = model.decode(frames, num_frames=clips.shape[1])
            return images.reshape(*clips.shape[:2], *images.shape[1:])

        return jit(decode)

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latents of images of `size`."""
        return size[0] // self.first_stage_factor, size[1] // self.first_stage_factor

    @property
    def first_stage_factor(self) -> int:
        """Pixels per latent, along one side."""
        stage = self.structure.shape.first_stage
        return 1 if stage is None else stage.factor

    @property
    def factor(self) -> int:
        """What height and width in pixels must be divisible by."""
        return self.first_stage_factor * self.structure.shape.network.frame.factor

    @property
    def latent_channels(self) -> int:
        return self.structure.shape.network.frame.out_conv.out_features

    # Looking.

    def pictures(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        key: jax.Array,
        *,
        players: Players | None = None,
    ) -> dict[str, np.ndarray]:
        """The clips, what the first stage makes of them, and samples from their first frames."""
        clips = jnp.asarray(batch['jpg'])
        size = clips.shape[2:4]
        frames = clips.reshape(-1, *clips.shape[2:])
        cond_key, sample_key = jax.random.split(key)
        aug = jnp.full((len(clips),), self.sampling.cond_aug)
        told = {
            **{k: jnp.asarray(v) for k, v in batch.items() if k != 'jpg'},
            **conditioning_frames(clips[:, 0], aug, cond_key),
        }
        z = self.sample_latents(params, frozen, told, sample_key, size=size)
        video = lambda x: to_uint8(x).reshape(clips.shape)
        pictures = {'inputs': video(clips), 'samples': video(self.decode(params, frozen, z))}
        if self.structure.shape.first_stage is not None:
            latents = self.encode(params, frozen, frames)
            pictures['reconstructions'] = video(self.decode(params, frozen, latents))
        return pictures
