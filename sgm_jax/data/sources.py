"""Sources by name: records by index, each a pure function of the index and of given random numbers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from sgm_jax.data.cached_latents import CachedLatents
from sgm_jax.data.captioned import CaptionedPictures
from sgm_jax.data.labelled import Labelled
from sgm_jax.data.orbits import Orbits
from sgm_jax.data.pictures import Mixture, Pictures, VideoFrames
from sgm_jax.data.synthetic import SyntheticVideo
from sgm_jax.data.videos import VideoClips


class Source(Protocol):
    """What the pipeline reads: a length, and records by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> int:
        """The index itself: cheap, so that shuffling and sharding decode nothing."""

    def record(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """The record; without `rng` there is nothing random in it."""

    def describe(self) -> str: ...


def _mixture(
    *,
    sources: Sequence[Mapping],
    weights: Sequence[float] = (),
    repeats: Sequence[int] = (),
    split: str = 'train',
) -> Mixture:
    return Mixture(sources=sources, table=SOURCES, weights=weights, repeats=repeats, split=split)


SOURCES = {
    'video_clips': VideoClips,
    'synthetic_video': SyntheticVideo,
    'pictures': Pictures,
    'video_frames': VideoFrames,
    'captioned_pictures': CaptionedPictures,
    'labelled': Labelled,
    'cached_latents': CachedLatents,
    'orbits': Orbits,
    'mixture': _mixture,
}
