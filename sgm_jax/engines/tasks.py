"""Tasks: which examples a diffusion model is trained on, and how a wish becomes a batch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.engines.sampling import ImageSampling, OrbitSampling, Sampling, VideoSampling

# What SV3D_p is told of each view.
CAMERAS = ('polars_rad', 'azimuths_rad')


class Task(Protocol):
    """What a batch of data is to a diffusion model.

    Attributes:
      num_frames: of a clip; None for pictures.
      makes: the entries of the conditioner's batch that the task itself makes.
      fixed: those of them in which nothing is drawn.
      sampling: what `config.sample` describes.
    """

    num_frames: int | None
    makes: ClassVar[tuple[str, ...]]
    fixed: ClassVar[tuple[str, ...]]
    sampling: ClassVar[type[Sampling]]

    def training_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Pictures or their moments (n, h, w, c) to learn, and the conditioner's batch."""
        ...

    def beside(self, record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of a record's pictures is needed beside their moments."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToVideo:
    """A clip from its first frame, as Stable Video Diffusion is trained.

    The conditioning frame is noised by a strength that the network is told (`cond_aug`), log-normal with
    the paper's values. Source: Blattmann et al. 2023 (SVD, arXiv:2311.15127), section 4.3 and appendix D.
    """

    num_frames: int
    cond_aug_mean: float = -3.0
    cond_aug_std: float = 0.5

    makes: ClassVar = ('cond_frames_without_noise', 'cond_frames', 'cond_aug')
    fixed: ClassVar = ('cond_frames_without_noise',)
    sampling: ClassVar = VideoSampling
    given: ClassVar[int] = 0  # of the frames

    def training_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Frames (b*t, h, w, c) of the `jpg` or `moments` (b, t, h, w, c), and the conditioner's batch."""
        clips = batch[learned(batch)]
        aug_key, noise_key = jax.random.split(key)
        log_aug = jax.random.normal(aug_key, (len(clips),))
        cond_aug = jnp.exp(self.cond_aug_mean + self.cond_aug_std * log_aug)
        return clips.reshape(-1, *clips.shape[2:]), self.told(batch, cond_aug, noise_key)

    def told(
        self, batch: Mapping[str, jax.Array], cond_aug: jax.Array, key: jax.Array
    ) -> dict[str, jax.Array]:
        """The conditioner's batch of the clips `jpg`, whose given frame has noise of `cond_aug` (b,)."""
        given = batch['given'] if 'given' in batch else batch['jpg'][:, self.given]
        return {
            **{k: v for k, v in batch.items() if k not in ('jpg', 'moments', 'given')},
            **conditioning_frames(given, cond_aug, key),
        }

    def beside(self, record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`given`, the frame (h, w, 3) of which the clip is made: noise is drawn on it each time."""
        return {'given': record['jpg'][self.given]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToOrbit(ImageToVideo):
    """Views from around an object, of which the last is given, as SV3D is trained.

    Cameras are told view by view: `polars_rad` and `azimuths_rad` (b, t) become (b*t,). By default the noise
    on the given view is what sgm's sampling tells SV3D, 1e-5, always; how it was trained is not published.
    Source: Voleti et al. 2024 (SV3D, arXiv:2403.12008), section 3.
    """

    cond_aug_mean: float = math.log(1e-5)
    cond_aug_std: float = 0.0

    sampling: ClassVar = OrbitSampling
    given: ClassVar[int] = -1

    def told(
        self, batch: Mapping[str, jax.Array], cond_aug: jax.Array, key: jax.Array
    ) -> dict[str, jax.Array]:
        """As for clips, and the cameras of all views in a row."""
        cameras = {k: jnp.reshape(batch[k], -1) for k in CAMERAS if k in batch}
        return {**super().told(batch, cond_aug, key), **cameras}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures, told whatever comes with them: a prompt, a class, sizes, or nothing."""

    num_frames: ClassVar = None
    makes: ClassVar = ()
    fixed: ClassVar = ()
    sampling: ClassVar = ImageSampling

    def training_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`jpg` or `moments` (b, h, w, c), and all the rest."""
        del key
        return batch[learned(batch)], {k: v for k, v in batch.items() if k != learned(batch)}

    def beside(self, record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Nothing."""
        del record
        return {}


def learned(batch: Mapping[str, jax.Array]) -> str:
    """The entry of a batch that is learned: `moments`, where a cache has them, or `jpg`."""
    return 'moments' if 'moments' in batch else 'jpg'


def conditioning_frames(
    frames: jax.Array, cond_aug: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """SVD's three entries for first frames (b, h, w, 3) in [-1, 1] and noise strengths (b,)."""
    noise = jax.random.normal(key, frames.shape)
    return {
        'cond_frames_without_noise': frames,
        'cond_frames': frames + cond_aug[:, None, None, None] * noise,
        'cond_aug': cond_aug,
    }


TASKS = {'image_to_video': ImageToVideo, 'image_to_orbit': ImageToOrbit, 'images': Images}
