"""How near reconstructions are to pictures, by scikit-image's measures."""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def image_metrics(x: np.ndarray, rec: np.ndarray) -> dict[str, float]:
    """Means over uint8 pictures (n, h, w, 3): 'psnr' in dB, 'ssim' up to 1 (windows of 7x7, per channel)."""
    pairs = list(zip(x, rec, strict=True))
    psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs if (a != b).any()]
    ssim = [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs]
    return {'psnr': float(np.mean(psnr)) if psnr else float('inf'), 'ssim': float(np.mean(ssim))}
