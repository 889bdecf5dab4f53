"""Pictures from prompts, from classes, from other pictures, or from nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.engines import DiffusionEngine
from sgm_jax.engines.model import check_chunk
from sgm_jax.engines.sampling import Sampling
from sgm_jax.engines.structure import to_uint8
from sgm_jax.errors import UserError
from sgm_jax.sampling import buckets
from sgm_jax.sampling.inputs import (
    Image,
    at_least_one,
    check_seed,
    read_images,
    to_float,
    to_grey,
)

if TYPE_CHECKING:
    from sgm_jax.sampling.load import LoadedModel

# How much of the way from noise a picture that is given goes again.
STRENGTH = 0.75
# The refiner's share of the steps.
HANDOFF = 0.2
Progress = Callable[[int, int], None]


def sample_images(
    *,
    model: LoadedModel,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str = '',
    cls: int | Sequence[int] | None = None,
    count: int = 1,
    image: Image | Sequence[Image] | None = None,
    strength: float | None = None,
    refiner: LoadedModel | None = None,
    handoff: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    aspect: str | None = None,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
    aesthetic_score: float | None = None,
    negative_aesthetic_score: float | None = None,
    sampler: str | None = None,
    discretization: str | None = None,
    guider: str | None = None,
    scale: float | None = None,
    batch: int = 4,
    decode_chunk: int | None = None,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """Pictures, as the model is told, batch by batch. What is not given is `config.sample`'s.

    Args:
      model: of pictures.
      prompt: what is to be seen, or several.
      negative_prompt: what is not; the guidance leads away from it.
      cls: the class, or several, of a class-conditional model.
      count: pictures for each prompt or class.
      image: a path or uint8 (h, w, 3) to begin from, or one for each prompt.
      strength: how much of the way from noise it goes again, 0 (not at all) to 1.
      refiner: a second model that takes the last steps.
      handoff: the share of the steps that is the refiner's; 0.2 by default.
      steps: of the sampler.
      seed: of the first picture's noise; the next picture has the next seed.
      height, width: pixels; or aspect: 'WIDTH:HEIGHT', for the nearest of the sizes SDXL was trained on.
      original_size, crop, target_size: what the model is told of them, (height, width) and (top, left); by
        default the picture's size and no crop.
      aesthetic_score, negative_aesthetic_score: what the refiner is told, about 1 to 10.
      sampler, discretization, guider: others, by name, with their defaults.
      scale: the strength of the guidance.
      batch: pictures that are made at once.
      decode_chunk: pictures decoded at once; 0 for all of a batch.
      progress: called with (network calls done, calls in all).

    Returns:
      an iterator of uint8 (n, height, width, c), at most `batch` at a time, each made when it is asked for:
      all pictures of the first prompt, then of the next. What is wrong is said before.

    Raises:
      UserError: something is missing, is not for this model, or is out of range.
    """
    at_least_one(count=count, batch=batch)
    if strength is not None and not 0 <= strength <= 1:
        raise UserError(f'strength is {strength}; give 0 (the picture as it is) to 1 (all new)')
    if strength is not None and image is None:
        raise UserError('strength is given without a picture; give image=, too')
    if handoff is not None and not 0 <= handoff <= 1:
        raise UserError(f'handoff is {handoff}; give the share of the refiner, 0 to 1')
    if handoff is not None and refiner is None:
        raise UserError('handoff is given without a refiner; give refiner=, too')
    settings = model.engine.sampling
    steps = settings.steps if steps is None else steps
    chunk = settings.decode_chunk if decode_chunk is None else decode_chunk
    at_least_one(steps=steps)
    check_chunk(chunk)
    if refiner is not None:
        _check_refiner(model, refiner)
    size = size_of(model, height=height, width=width, aspect=aspect, refiner=refiner)
    wishes = _Wishes.of(model, prompt, negative_prompt, cls, count)
    check_seed(seed, len(wishes))
    scores = dict(
        aesthetic_score=aesthetic_score, negative_aesthetic_score=negative_aesthetic_score
    )
    sizes = dict(
        original_size_as_tuple=original_size or size,
        crop_coords_top_left=crop,
        target_size_as_tuple=target_size or size,
    )
    begin = None
    if image is not None:
        begin = _Begin.of(model, read_images(image, size), wishes, count)
    choices = dict(sampler=sampler, discretization=discretization, guider=guider, scale=scale)
    sampling = settings.with_choices(**choices)
    sigmas = _sigmas(sampling, steps, STRENGTH if strength is None else strength, begin)
    parts = [_Part(model, sampling, sigmas, wishes.told(model, sizes, scores), False)]
    if refiner is not None:
        share = HANDOFF if handoff is None else handoff
        parts = _handed_off(parts[0], refiner, share, wishes.told(refiner, sizes, scores), choices)
    total = _Counter(parts, len(wishes), batch, progress)
    # Apart, for what is wrong is to be said here and not when the first picture is asked for.
    return _drawn(parts, begin, _batches(len(wishes), batch), seed, size, chunk, total)


def _drawn(parts, begin, batches, seed, size, chunk, total) -> Iterator[np.ndarray]:
    last = parts[-1].model
    for chosen in batches:
        z = None if begin is None else begin(chosen)
        keys = jnp.stack([jax.random.key(seed + int(index)) for index in chosen])
        for part in parts:
            z = part.run(chosen, keys, z, size, total)
        images = to_uint8(last.engine.decode(last.params, last.frozen, z, chunk=chunk))
        yield images[: len(set(chosen.tolist()))]


def size_of(
    model: LoadedModel,
    *,
    height: int | None = None,
    width: int | None = None,
    aspect: str | None = None,
    refiner: LoadedModel | None = None,
) -> tuple[int, int]:
    """(height, width) of the pictures that are asked for; UserError: the models have no such size."""
    own = (model.engine.sampling.height, model.engine.sampling.width)
    if aspect is not None:
        if height is not None or width is not None:
            raise UserError('aspect goes without height and width; give one of the two')
        factors = [one.engine.factor for one in (model, refiner) if one is not None]
        size = buckets.nearest(aspect, own, math.lcm(*factors))
    else:
        size = (own[0] if height is None else height, own[1] if width is None else width)
        at_least_one(height=size[0], width=size[1])
    model.check_size(size)
    if refiner is not None:
        try:
            refiner.check_size(size)
        except UserError as error:
            raise UserError(f'the refiner: {error}') from error
    return size


def _check_refiner(model: LoadedModel, refiner: LoadedModel) -> None:
    if not isinstance(refiner.engine, DiffusionEngine) or refiner.makes_videos:
        kind = 'makes videos' if refiner.makes_videos else 'is a first stage'
        raise UserError(f'the refiner {kind}; give a model of pictures, such as SDXL refiner')
    if refiner.engine.latent_channels != model.engine.latent_channels:
        raise UserError('the refiner has other latents than the model; give one of the same family')
    if refiner.devices != model.devices:
        raise UserError('the refiner lies on other devices than the model; load both with one mesh')


@dataclasses.dataclass(frozen=True)
class _Begin:
    """Pictures to begin from, uint8 (n, h, w, c), each once, and which of them each sample's is."""

    model: LoadedModel
    images: np.ndarray
    which: np.ndarray

    @classmethod
    def of(cls, model, images: np.ndarray, wishes: _Wishes, count: int) -> _Begin:
        """One picture for all, or one for each prompt."""
        if model.channels not in (1, 3):
            raise UserError(
                f'this model makes {model.channels} channels, which no picture has; leave out image='
            )
        if len(images) == 1:
            which = np.zeros(len(wishes), int)
        elif len(images) * count == len(wishes):
            which = np.repeat(np.arange(len(images)), count)
        else:
            raise UserError(
                f'{len(images)} pictures were given for {len(wishes) // count} prompts; give one, or as many'
            )
        return cls(model, to_grey(images) if model.channels == 1 else images, which)

    def __call__(self, chosen: np.ndarray) -> jax.Array:
        """Latents of the samples' pictures."""
        model = self.model
        pictures = to_float(self.images[self.which[chosen]])
        return model.engine.encode(model.params, model.frozen, pictures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What is wished of each sample: prompts or classes, one an entry."""

    negative_prompt: str
    prompts: list[str] | None = None
    classes: np.ndarray | None = None
    count: int = 1

    def __len__(self) -> int:
        if self.prompts is not None:
            return len(self.prompts)
        return self.count if self.classes is None else len(self.classes)

    @classmethod
    def of(cls, model, prompt, negative_prompt, classes, count) -> _Wishes:
        read = _read_by(model)
        if 'txt' not in read and (prompt is not None or negative_prompt):
            raise UserError('this model knows no words; leave out prompt= and negative_prompt=')
        if 'cls' not in read and classes is not None:
            raise UserError('this model knows no classes; leave out cls=')
        wishes = dict(negative_prompt=negative_prompt, count=count)
        if 'txt' in read:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
            if not prompts:
                raise UserError('no prompt was given; give prompt=, or several')
            wishes['prompts'] = [text for text in prompts for _ in range(count)]
        if 'cls' in read:
            if classes is None or np.size(classes) == 0:
                raise UserError('no class was given; give cls=, or several')
            chosen = np.atleast_1d(np.asarray(classes))
            most = _class_count(model)
            if chosen.dtype.kind not in 'iu' or chosen.min() < 0 or chosen.max() >= most:
                raise UserError(f'cls is {classes}; give whole numbers from 0 to {most - 1}')
            wishes['classes'] = np.repeat(chosen.astype(np.int32), count)
        return cls(**wishes)

    def told(self, model, sizes, scores) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
        """The batches of the two passes for all samples, and what is zeroed in the second."""
        settings = model.engine.sampling
        given = {name: value for name, value in scores.items() if value is not None}
        settings = dataclasses.replace(settings, **given)
        every = lambda value: np.tile(np.atleast_1d(np.asarray(value, np.float32)), (len(self), 1))
        known = {name: every(value) for name, value in sizes.items()}
        known['aesthetic_score'] = every(settings.aesthetic_score)
        if self.prompts is not None:
            known['txt'] = np.array(self.prompts)
        if self.classes is not None:
            known['cls'] = self.classes
        read = _read_by(model)
        unknown = sorted(read - set(known))
        if unknown:
            raise UserError(f'this model is told {unknown[0]!r}, which cannot be given here')
        batch = {name: value for name, value in known.items() if name in read}
        without, zero = settings.without(batch, self.negative_prompt)
        return batch, without, zero


def _read_by(model) -> frozenset[str]:
    return model.engine.structure.shape.conditioner.reads


def _class_count(model) -> int:
    conditioner = model.engine.structure.shape.conditioner
    pairs = zip(conditioner.embedders, conditioner.slots, strict=True)
    return min(e.embedding.num_embeddings for e, slot in pairs if 'cls' in slot.keys)


def _sigmas(sampling: Sampling, steps: int, strength: float, begin: Any) -> np.ndarray:
    """The noise levels; with a picture to begin from, the last of them, as sgm counts them."""
    sigmas = sampling.discretization.sigmas(steps)
    if begin is None:
        return sigmas
    return sigmas[-max(int(strength * len(sigmas)), 1) :]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One model's part of the way: `noised` says that what it is given has its first sigma's noise."""

    model: LoadedModel
    sampling: Sampling
    sigmas: np.ndarray
    told: tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]
    noised: bool

    @property
    def calls(self) -> int:
        """Of the network, for one batch."""
        return len(self.sampling.sampler.plan(self.sigmas)['sigma']) if len(self.sigmas) > 1 else 0

    def run(self, chosen, keys, z, size, progress: _Counter) -> jax.Array:
        if not self.calls:
            return z
        engine, params, frozen = self.model.engine, self.model.params, self.model.frozen
        batch, without, zero = self.told
        pick = lambda entries: {name: value[chosen] for name, value in entries.items()}
        return engine.sample_latents(
            params,
            frozen,
            engine.condition(
                params,
                frozen,
                pick(batch),
                without=pick(without),
                zero=zero,
                guided=self.sampling.guided,
            ),
            keys,
            size=size,
            sampling=self.sampling,
            sigmas=self.sigmas,
            start=z,
            noised=self.noised,
            progress=progress,
        )


def _handed_off(first: _Part, refiner, handoff, told, choices) -> list[_Part]:
    """The way of one model as that of two: the second goes on where the first leaves the noise."""
    steps = len(first.sigmas) - 1
    cut = steps - round(handoff * steps)
    sampling = refiner.engine.sampling.with_choices(**choices)
    early = dataclasses.replace(first, sigmas=first.sigmas[: cut + 1])
    late = _Part(refiner, sampling, first.sigmas[cut:], told, noised=cut > 0)
    # Without any noise (strength 0) there is no way to go: the picture is the first model's.
    return [part for part in (early, late) if part.calls] or [first]


def _batches(count: int, batch: int) -> Iterator[np.ndarray]:
    """Indices in batches of one size: what was compiled for the first serves the last."""
    batch = min(batch, count)
    for start in range(0, count, batch):
        yield np.minimum(np.arange(start, start + batch), count - 1)


class _Counter:
    """Progress over all parts and batches."""

    def __init__(self, parts: Sequence[_Part], count: int, batch: int, report: Progress | None):
        batches = len(list(_batches(count, batch)))
        self.total = sum(part.calls for part in parts) * batches
        self.done, self.report = 0, report

    def __call__(self, done: int, calls: int) -> None:
        self.done += 1
        if self.report:
            self.report(self.done, self.total)
