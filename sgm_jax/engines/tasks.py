"""Tasks: which examples a diffusion model is trained on, and how a wish becomes a batch."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToVideo:
    """A clip from its first frame, as Stable Video Diffusion is trained.

    The conditioning frame is noised by a strength that the network is told (`cond_aug`), log-normal with
    the paper's values. Source: Blattmann et al. 2023 (SVD, arXiv:2311.15127), section 4.3 and appendix D.
    """

    num_frames: int
    cond_aug_mean: float = -3.0
    cond_aug_std: float = 0.5

    def training_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Frames (b*t, h, w, 3) of the clips `jpg` (b, t, h, w, 3), and the conditioner's batch."""
        clips = batch['jpg']
        aug_key, noise_key = jax.random.split(key)
        log_aug = jax.random.normal(aug_key, (len(clips),))
        cond_aug = jnp.exp(self.cond_aug_mean + self.cond_aug_std * log_aug)
        return clips.reshape(-1, *clips.shape[2:]), {
            **{k: v for k, v in batch.items() if k != 'jpg'},
            **conditioning_frames(clips[:, 0], cond_aug, noise_key),
        }


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


TASKS = {'image_to_video': ImageToVideo}
