"""What to see and say of reconstructions; on the host."""

import logging

import numpy as np

from sgm_jax.engines.structure import to_uint8
from sgm_jax.networks.quantizers import dead_codes, usage

LOG = logging.getLogger(__name__)


def figures(x: np.ndarray, rec: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of reconstructions (n, h, w, 3) in [-1, 1]."""
    from sgm_jax.engines.image_metrics import image_metrics

    return image_metrics(to_uint8(x), to_uint8(rec))


def count_dead(codes: np.ndarray, size: int) -> dict[str, float]:
    """How many of a codebook's `size` codes held-out pictures do not use; warns where it is most of them."""
    dead = dead_codes(usage(codes, size))
    if dead > size // 2:
        LOG.warning(
            '%d of %d codes are dead: none of %d held-out latents is nearest to them; use a smaller '
            'codebook, or more data',
            dead,
            size,
            codes.size,
        )
    return {'dead_codes': dead}


def views(x: np.ndarray, rec: np.ndarray, boost: float, *, suffix: str) -> dict[str, np.ndarray]:
    """Inputs, reconstructions, their differences, and those `boost` times as bright; all in [-1, 1]."""
    rec = np.clip(rec, -1.0, 1.0).reshape(x.shape)
    difference = 0.5 * np.abs(rec - x)
    boosted = np.clip(boost * difference, 0.0, 1.0)
    return {
        'inputs': x,
        f'reconstructions{suffix}': rec,
        f'diff{suffix}': 2.0 * difference - 1.0,
        f'diff_boost{suffix}': 2.0 * boosted - 1.0,
    }


def as_pictures(values: np.ndarray) -> np.ndarray:
    """[-1, 1] to uint8; a clip of one frame (b, 1, h, w, c) is a picture (b, h, w, c)."""
    return to_uint8(values[:, 0] if values.ndim == 5 and values.shape[1] == 1 else values)
