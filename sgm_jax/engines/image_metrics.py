"""How near reconstructions are to pictures, by scikit-image's measures."""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def image_metrics(x: np.ndarray, rec: np.ndarray) -> dict[str, float]:
    """Means over uint8 pictures (n, h, w, 3): 'psnr' in dB, 'ssim' up to 1 (windows of 7x7, per channel)."""
    pairs = list(zip(x, rec, strict=True))
    psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs if (a != b).any()]
    ssim = [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs]
    return {'psnr': float(np.mean(psnr)) if psnr else float('inf'), 'ssim': float(np.mean(ssim))}


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Between the normal distributions of two sets of features (n, d), n at least 2.

    Source: Heusel et al. 2017 (arXiv:1706.08500), equation 6. With fewer pictures than features it is far
    too large, and comparable at the same number of pictures only.
    """
    means = [np.asarray(f, np.float64).mean(0) for f in (x, y)]
    # As roots: the product of two covariances has the squared singular values of a product of roots.
    roots = [
        (np.asarray(f, np.float64) - mean) / np.sqrt(len(f) - 1)
        for f, mean in zip((x, y), means, strict=True)
    ]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    return float(np.square(means[0] - means[1]).sum() + spread - 2 * shared)
