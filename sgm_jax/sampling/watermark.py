"""An invisible watermark on pictures and frames, the one of sgm's demos: it says that a model made them."""

import importlib.util

import numpy as np

from sgm_jax.errors import UserError

# sgm's 48 bits, so that what looks for its pictures finds these, too.
MESSAGE = 0xB3EC907BB19E
BITS = [int(bit) for bit in f'{MESSAGE:048b}']
METHOD = 'dwtDct'
_SMALLEST = 256  # pixels, of height times width: 256 * 256; the library's own limit


def check_installed() -> None:
    """Raises a UserError unless the library is there."""
    if importlib.util.find_spec('imwatermark') is None:
        raise UserError(
            "the watermark's library is not installed; run 'pip install invisible-watermark', or leave out "
            '--watermark'
        )


def check_size(height: int, width: int, channels: int) -> None:
    """Raises a UserError for pictures that cannot hold a mark."""
    if height * width < _SMALLEST**2 or channels != 3:
        raise UserError(
            f'pictures of {height}x{width} with {channels} channels cannot hold a watermark; it needs '
            f'{_SMALLEST}x{_SMALLEST} in colour; leave out --watermark'
        )


def mark(images: np.ndarray) -> np.ndarray:
    """uint8 pictures (n, h, w, 3) with the mark in them.

    Raises:
      UserError: the library is not installed, or the pictures are too small to hold a mark.
    """
    check_installed()
    check_size(*images.shape[1:])
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark('bits', BITS)
    # The library takes OpenCV's order of colours.
    return np.stack([encoder.encode(image[..., ::-1], METHOD)[..., ::-1] for image in images])
