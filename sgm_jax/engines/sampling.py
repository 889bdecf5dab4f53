"""`config.sample`: how samples are drawn, by sample.py and for the pictures of a training run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgm_jax.config import call, check_keys, plain
from sgm_jax.diffusion.discretization import Discretization
from sgm_jax.diffusion.families import make
from sgm_jax.diffusion.guiders import Guider
from sgm_jax.diffusion.samplers import Sampler
from sgm_jax.engines.model import check_chunk
from sgm_jax.errors import UserError

FAMILIES = ('sampler', 'discretization', 'guider')
# What a guider's strength is called, in the order of preference.
_STRENGTHS = ('scale', 'max_scale')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """What every kind of sample needs.

    Attributes:
      sampler, discretization, guider: nodes of those families; steps: how many the sampler takes.
      zero: the entries of the batch that the unconditional pass does not know.
      height, width: pixels.
      decode_chunk: images that are decoded at once; 0 for all.
      decode_overlap: frames on either side of a chunk that a temporal decoder sees besides it.
    """

    sampler: Sampler
    discretization: Discretization
    guider: Guider
    steps: int
    height: int
    width: int
    zero: tuple[str, ...] = ()
    decode_chunk: int = 0
    decode_overlap: int = 2

    def __post_init__(self):
        check_chunk(self.decode_chunk)
        if self.decode_overlap < 0:
            raise UserError(f'decode_overlap is {self.decode_overlap}; give 0 or more')

    @classmethod
    def from_config(
        cls, node: Mapping, *, num_frames: int | None, known: Sequence[str]
    ) -> 'Sampling':
        """From `config.sample`, for a conditioner that reads the entries `known`."""
        node = plain(node)
        parts = {
            name: make(name, node[name], where=f'sample.{name}', num_frames=num_frames or 1)
            for name in FAMILIES
            if name in node
        }
        sampling = call(cls, {**node, **parts}, where='sample')
        check_keys(sampling.zero, known, where='sample.zero')
        return sampling

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional pass."""
        return self.guider.scales() is not None

    def with_choices(
        self,
        *,
        sampler: str | None = None,
        discretization: str | None = None,
        guider: str | None = None,
        scale: float | None = None,
        num_frames: int | None = None,
        **numbers: int,
    ) -> 'Sampling':
        """With others of the families, by name and with their defaults, and other strengths and numbers.

        Raises:
          UserError: an unknown name, or a guider that has no such strength.
        """
        changed: dict[str, Any] = {**numbers}
        for family, name in (('sampler', sampler), ('discretization', discretization)):
            if name is not None:
                changed[family] = make(family, {'name': name}, where=family)
        if guider is not None:
            node = {'name': guider}
            if guider != 'identity':
                node['scale' if guider == 'vanilla_cfg' else 'max_scale'] = 1.0
            changed['guider'] = make('guider', node, where='guider', num_frames=num_frames or 1)
        if scale is not None:
            changed['guider'] = _scaled(changed.get('guider', self.guider), scale)
        return dataclasses.replace(self, **changed) if changed else self


def _scaled(guider: Guider, scale: float) -> Guider:
    for name in _STRENGTHS:
        if hasattr(guider, name):
            return dataclasses.replace(guider, **{name: scale})
    raise UserError(
        f'scale is {scale}, but {type(guider).__name__} has no strength; choose the guider vanilla_cfg'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSampling(Sampling):
    """Of clips from a picture: fps, motion_bucket and cond_aug are what the model is told."""

    fps: int = 7
    motion_bucket: float = 127
    cond_aug: float = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrbitSampling(Sampling):
    """Of orbits around the object in a picture.

    Attributes:
      cond_aug: what the model is told of the noise on the picture.
      elevation: of the camera, degrees, where none is given.
      frame_ratio: the object's longer side as a share of the picture's; 0 leaves pictures as they are.
      fps: of the file; the model is not told.
    """

    cond_aug: float = 1e-5
    elevation: float = 10.0
    frame_ratio: float = 0.917
    fps: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSampling(Sampling):
    """Of pictures: aesthetic_score and negative_aesthetic_score are told with and without the condition.

    Source of the scores: sgm's sampling demo (its refiner was trained on a predictor's scores, 1 to 10).
    """

    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def without(
        self, batch: Mapping[str, Any], negative_prompt: str | Sequence[str] = ''
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the unconditional pass is told: its batch, and the entries whose embeddings are zeros.

        A negative prompt is embedded, where the empty one may be zeroed (`zero`). Follows sgm's get_batch.
        """
        told, zero = dict(batch), self.zero
        if 'txt' in batch:
            count = len(batch['txt'])
            texts = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
            told['txt'] = np.array(texts * count if len(texts) == 1 else texts)
            if any(text.strip() for text in texts):
                zero = tuple(name for name in zero if name != 'txt')
        if 'aesthetic_score' in batch:
            score = np.asarray(batch['aesthetic_score'])
            told['aesthetic_score'] = np.full_like(score, self.negative_aesthetic_score)
        return told, zero
