"""The diffusion engine: one model, its training loss and its samples, as pure functions of parameters."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.config import build, plain
from sgm_jax.diffusion.binned import Binned
from sgm_jax.diffusion.denoiser import DenoiserLike
from sgm_jax.diffusion.drivers import sample
from sgm_jax.diffusion.families import make
from sgm_jax.diffusion.guiders import guide
from sgm_jax.diffusion.loss import StandardDiffusionLoss
from sgm_jax.diffusion.samplers import Sampler
from sgm_jax.engines.caching import fingerprint
from sgm_jax.engines.devices import ONE, Devices
from sgm_jax.engines.looking import look, losses_of
from sgm_jax.engines.model import DiffusionModel, build_model, check_chunk
from sgm_jax.engines.protocol import Gradients, Players, gradients_of
from sgm_jax.engines.records import check_record
from sgm_jax.engines.sampling import Sampling
from sgm_jax.engines.structure import PyTree, Structure
from sgm_jax.engines.tasks import TASKS, Task, learned
from sgm_jax.engines.weights import Weights
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.parallel.compiler import jit

Batch = Mapping[str, Any]
# (cond, uncond): what the network is told in each pass; no uncond where nothing guides.
Told = tuple[dict[str, jax.Array], dict[str, jax.Array] | None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiffusionEngine:
    """Trains and samples a DiffusionModel. Follows sgm.models.diffusion.DiffusionEngine."""

    structure: Structure
    denoiser: DenoiserLike
    objective: StandardDiffusionLoss
    task: Task
    sampling: Sampling
    weights: Weights
    encoders: tuple = ()
    devices: Devices = ONE

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
        sampling = task.sampling.from_config(
            plain(sample),
            num_frames=task.num_frames,
            known=tuple(node.get('input_key', '') for node in conditioner),
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
            encoders=(first_stage, *(n for n in conditioner if not n.get('is_trainable', False))),
        )

    # Training.

    def init(self, key: jax.Array) -> PyTree:
        return self.structure.init(key)[0]

    def init_adversary(self, key: jax.Array) -> None:
        return None

    def init_frozen(self, key: jax.Array, *, training: bool = True) -> PyTree:
        return self.weights.frozen()

    def frozen_shapes(self, *, training: bool = True) -> PyTree:
        return self.structure.abstract[2]

    def pretrained(self) -> PyTree | None:
        return self.weights.trainable()

    def check(self, record: Mapping[str, np.ndarray], *, any_length: bool = False) -> None:
        check_record(self, record, any_length=any_length)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the frozen encoders, by their config and their files."""
        files = (self.weights.checkpoint, self.weights.first_stage_checkpoint)
        return fingerprint(plain(self.encoders), *files)

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """Prompts become tokens, and words that nobody reads are left out."""
        told = self._tokenize({k: v for k, v in batch.items() if k != 'jpg'})
        told = {k: v for k, v in told.items() if np.asarray(v).dtype.kind not in 'OSU'}
        return {**({'jpg': batch['jpg']} if 'jpg' in batch else {}), **told}

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
        losses, sigmas = self._losses(params, frozen, batch, key)
        loss = losses.mean()
        return loss, {'loss': loss, 'loss_by_sigma': Binned.of(losses, sigmas)}

    def _losses(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        key: jax.Array,
        *,
        sigma: jax.Array | None = None,
        training: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of each picture, and the sigma it was taken at: one for all of them, or drawn.

        Without `training` nothing is dropped: no condition, and nothing in the network.
        """
        model = self.structure.merge(params, frozen)
        task_key, encode_key, drop_key, noise_key, dropout_key = jax.random.split(key, 5)
        # Of this batch: buckets have clips of other lengths than the one that is sampled.
        examples, *shape = batch[learned(batch)].shape
        num_frames = None if self.task.num_frames is None else shape[0]
        x, told = self.task.training_batch(batch, task_key)
        encode = model.latents if 'moments' in batch else model.encode
        z = jax.lax.stop_gradient(encode(x, encode_key))
        drop_key, dropout_key = (drop_key, dropout_key) if training else (None, None)
        cond = model.condition(told, key=drop_key, **self._video(examples, num_frames))
        denoise = self._denoise(model, num_frames, key=dropout_key)
        if sigma is not None:
            sigma = jnp.full(len(z), sigma)
        return self.objective(noise_key, denoise, z, cond, num_frames=num_frames, sigma=sigma)

    def _denoise(self, model: DiffusionModel, num_frames: int | None, **inputs: Any) -> Callable:
        if num_frames is not None:
            inputs['num_frames'] = num_frames
        return lambda x, sigma, cond: self.denoiser(model.apply, x, sigma, cond, **inputs)

    def _video(self, examples: int, num_frames: int | None) -> dict[str, int]:
        return {} if num_frames is None else dict(examples=examples, num_frames=num_frames)

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
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        *,
        without: Batch | None = None,
        zero: Sequence[str] | None = None,
        guided: bool = True,
    ) -> Told:
        """(cond, uncond) for a conditioner's batch; on the host.

        Args:
          batch: the entries that the embedders read, prompts as text.
          without: the batch of the unconditional pass, by default the same.
          zero: the entries that it does not know, by default `config.sample.zero`.
          guided: whether there is an unconditional pass; without it uncond is None, and costs nothing.
        """
        zeroed = self.sampling.zero if zero is None else zero

        def embed(told: Batch, hidden: Sequence[str]) -> dict[str, jax.Array]:
            zero = {name: np.bool_(name in hidden) for name in self.sampling.zero}
            return self._condition(params, frozen, self.devices.put(self._tokenize(told)), zero)

        cond = embed(batch, ())
        return cond, embed(batch if without is None else without, zeroed) if guided else None

    def _tokenize(self, batch: Batch) -> dict[str, Any]:
        return self.structure.shape.conditioner.tokenize(batch)

    def validate(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> dict[str, float]:
        measure = functools.partial(self._validate, params, frozen, self.prepare(batch))
        return losses_of(measure, key)

    @functools.cached_property
    def _validate(self) -> Callable:
        def validate(params, frozen, batch, key, sigma):
            return self._losses(params, frozen, batch, key, sigma=sigma, training=False)[0].mean()

        return jit(validate)

    @functools.cached_property
    def _condition(self) -> Callable:
        def condition(params, frozen, batch, zero):
            model = self.structure.merge(params, frozen)
            # Some entries have a row for each frame, others one for each clip.
            examples = min(map(len, batch.values()), default=0)
            video = self._video(examples, self.task.num_frames)
            with self.devices.over(examples):
                return model.condition(batch, zero=zero, **video)

        return jit(condition)

    def sample_latents(
        self,
        params: PyTree,
        frozen: PyTree,
        told: Told,
        keys: jax.Array,
        *,
        size: tuple[int, int],
        sampling: Sampling | None = None,
        sigmas: np.ndarray | None = None,
        start: jax.Array | None = None,
        noised: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> jax.Array:
        """Latents (n * num_frames, h, w, c) of n pictures or clips of `size` (height, width) pixels.

        Sigmas, their number, and the guidance's strength change from call to call without compiling again.

        Args:
          told: from `condition`.
          keys: (n,), one for the noise of each: a picture does not depend on those beside it.
          sampling: how; by default `config.sample`.
          sigmas: the noise levels, by default those of `sampling`. Where the last is not zero, the result
            still has its noise.
          start: latents to begin from instead of pure noise; `noised` says that they have the noise of
            the first sigma already.
        """
        sampling = sampling or self.sampling
        if sigmas is None:
            sigmas = sampling.discretization.sigmas(sampling.steps)
        shape = (self.task.num_frames or 1, *self.latent_size(size), self.latent_channels)
        x = _noise(keys, 0, shape)
        if start is not None:
            # The driver scales its x by the root, as if it were pure noise.
            noise = 0.0 if noised else sigmas[0] * x
            x = (start + noise) / np.sqrt(1 + np.float32(sigmas[0]) ** 2)
        told, scales = self.devices.put(told), sampling.guider.scales()
        step = functools.partial(self._step(sampling.sampler), params, frozen, *told, scales)
        laid = self.devices.put
        return sample(
            sampling.sampler,
            lambda carry, scalars, noise: step(laid(carry), scalars, laid(noise)),
            x,
            sigmas,
            noise=lambda call: _noise(keys, 1 + call, shape),
            progress=progress,
        )

    def _step(self, sampler: Sampler) -> Callable:
        # Kept, for it holds what was compiled.
        steps = self.__dict__.setdefault('_steps', {})
        if sampler not in steps:

            def step(params, frozen, cond, uncond, scales, carry, scalars, noise):
                model = self.structure.merge(params, frozen)
                single = self._denoise(model, self.task.num_frames)
                guided = lambda x, sigma: guide(single, x, sigma, cond, uncond, scales)
                samples = len(carry['x']) // (self.task.num_frames or 1)
                with self.devices.over(samples if scales is None else 2 * samples):
                    return sampler.step(carry, guided, scalars, noise)

            steps[sampler] = jit(step)
        return steps[sampler]

    def encode(self, params: PyTree, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to their likeliest scaled latents."""
        return self._encode(params, frozen, self.devices.put(images))

    @functools.cached_property
    def _encode(self) -> Callable:
        def encode(params, frozen, x):
            with self.devices.over(len(x)):
                return self.structure.merge(params, frozen).encode(x)

        return jit(encode)

    def decode(
        self,
        params: PyTree,
        frozen: PyTree,
        z: jax.Array,
        *,
        chunk: int | None = None,
        overlap: int = 0,
    ) -> jax.Array:
        """Scaled latents (n, h, w, c) to images; see `decoded`."""
        parts = list(self.decoded(params, frozen, z, chunk=chunk, overlap=overlap))
        images = jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]
        return images.reshape(-1, *images.shape[2:])

    def decoded(
        self,
        params: PyTree,
        frozen: PyTree,
        z: jax.Array,
        *,
        chunk: int | None = None,
        overlap: int = 0,
    ) -> Iterator[jax.Array]:
        """Images (clips, frames, h, w, 3) of scaled latents (n, h, w, c), `chunk` frames of each at a time.

        The temporal decoder mixes the frames that it is given, so a chunk of fewer than all frames changes
        the result a little. It is given `overlap` frames more on either side, which are thrown away again
        (at a clip's end as many more on the other side). A decoder of pictures gives the same frames however
        they are cut. Memory grows with chunk + 2 overlap only.
        """
        check_chunk(chunk)
        num_frames = self.task.num_frames or len(z)
        clips = z.reshape(-1, num_frames, *z.shape[1:])
        chunk = min(chunk or num_frames, num_frames)
        window = self.decoded_at_once(chunk, overlap, num_frames)
        for start in range(0, num_frames, chunk):
            first = start
            if self.decodes_clips:
                first = min(max(start - overlap, 0), num_frames - window)
            seen = self.devices.put(clips[:, first : first + window])
            part = self._decode(params, frozen, seen)
            yield part[:, start - first : start - first + chunk]

    def decoded_at_once(self, chunk: int, overlap: int, num_frames: int) -> int:
        """How many frames of a clip its decoder is given for each chunk of them."""
        return min(chunk + (2 * overlap if self.decodes_clips else 0), num_frames)

    @property
    def decodes_clips(self) -> bool:
        """Whether the first stage's decoder mixes frames."""
        stage = self.structure.shape.first_stage
        return stage is not None and isinstance(stage.decoder, VideoDecoder)

    @functools.cached_property
    def _decode(self) -> Callable:
        def decode(params, frozen, clips):
            model = self.structure.merge(params, frozen)
            frames = clips.reshape(-1, *clips.shape[2:])
            with self.devices.over(len(clips) if self.decodes_clips else len(frames)):
                images = model.decode(frames, num_frames=clips.shape[1])
            return images.reshape(*clips.shape[:2], *images.shape[1:])

        return jit(decode)

    def latent_rows(self, record: Mapping[str, np.ndarray]) -> int:
        if 'moments' in record:
            return record['moments'].shape[-3]
        return self.latent_size(record['jpg'].shape[-3:-1])[0]

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

    def pictures(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        key: jax.Array,
        *,
        players: Players | None = None,
        unguided: bool = False,
    ) -> dict[str, np.ndarray]:
        return look(self, params, frozen, batch, key, unguided=unguided)


@functools.partial(jax.jit, static_argnames='shape')
def _noise(keys: jax.Array, call: int, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal (n * shape[0], ...), of each key alone, for one call of the network."""
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, call), shape)
    return jax.vmap(draw)(keys).reshape(-1, *shape[1:])
