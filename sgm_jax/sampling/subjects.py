"""The object in a picture as SV3D was shown it: cut out, centred, on white."""

import pathlib

import numpy as np
from PIL import Image as PILImage

from sgm_jax.errors import UserError
from sgm_jax.sampling import media
from sgm_jax.sampling.inputs import Image

# Longer sides are shrunk before the background is removed, as sgm does.
_LARGEST = 768


def prepare(
    image: Image,
    size: tuple[int, int],
    *,
    frame_ratio: float,
    remove_background: bool | None = None,
) -> np.ndarray:
    """uint8 (*size, 3): the object of a picture in the middle of a white one.

    A picture with transparency is its own mask. Source: sgm's simple_video_sample.py, which by default
    keeps the object's size; its helpers for SV4D let the longer side take up 0.917 of the frame.

    Args:
      image: a path, or uint8 (h, w, 3) or (h, w, 4).
      size: (height, width).
      frame_ratio: the object's longer side as a share of the frame's shorter one, above 0 to 1; 0 keeps the
        picture's own framing, padded with white to the frame's shape.
      remove_background: of an opaque picture, with the package rembg; None: if frame_ratio is above 0.

    Raises:
      UserError: the picture cannot be read or is empty, rembg is wanted and not installed, or frame_ratio is
        out of range.
    """
    if not 0 <= frame_ratio <= 1:
        raise UserError(
            f'frame_ratio is {frame_ratio}; give above 0 to 1, or 0 to keep the framing'
        )
    name = 'the picture' if isinstance(image, np.ndarray) else str(image)
    rgba = _rgba(image)
    opaque = bool((rgba[..., 3] == 255).all())
    wanted = frame_ratio > 0 if remove_background is None else remove_background
    if wanted and opaque:
        rgba = _cut_out(rgba, name)
    rows, columns = (np.flatnonzero(rgba[..., 3].any(axis)) for axis in (1, 0))
    if not len(rows):
        raise UserError(
            f'{name}: nothing is left of it but transparency (its alpha mask is empty); give a picture with '
            'an object in it'
        )
    if frame_ratio:
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _framed(rgba, size, frame_ratio)


def _rgba(image: Image) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return media.read_rgba(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (3, 4):
        raise UserError(
            f'pictures are uint8 (h, w, 3) or (h, w, 4), got {image.dtype} {image.shape}'
        )
    opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
    return np.concatenate([image[..., :3], image[..., 3:] if image.shape[-1] == 4 else opaque], -1)


def _cut_out(rgba: np.ndarray, name: str) -> np.ndarray:
    try:
        from rembg import remove
    except ImportError as error:
        raise UserError(
            f"{name} has a background, and the package that removes it is not installed; run 'pip install "
            "rembg[cpu]', give a picture with transparency, or --noremove_background"
        ) from error
    picture = PILImage.fromarray(rgba)
    picture.thumbnail((_LARGEST, _LARGEST), PILImage.Resampling.LANCZOS)
    return np.asarray(remove(picture, alpha_matting=True).convert('RGBA'))


def _framed(rgba: np.ndarray, size: tuple[int, int], frame_ratio: float) -> np.ndarray:
    """In the middle of a frame of the shape of `size`, scaled to it, over white."""
    height, width = rgba.shape[:2]
    short = min(size)
    if frame_ratio:
        unit = max(height, width) / frame_ratio / short
    else:
        unit = max(height / size[0], width / size[1])
    frame = [max(1, round(unit * side)) for side in size]
    frame = [max(side, own) for side, own in zip(frame, (height, width), strict=True)]
    canvas = np.zeros((*frame, 4), np.uint8)
    top, left = (frame[0] - height) // 2, (frame[1] - width) // 2
    canvas[top : top + height, left : left + width] = rgba
    scaled = PILImage.fromarray(canvas)
    if tuple(frame) != tuple(size):
        scaled = scaled.resize(size[::-1], PILImage.Resampling.LANCZOS)
    white = PILImage.new('RGBA', scaled.size, 'white')
    return np.asarray(PILImage.alpha_composite(white, scaled).convert('RGB'))


def list_pictures(path: str | pathlib.Path) -> list[pathlib.Path]:
    """A picture, or the pictures in a folder, sorted; a file that is missing is an error of its reader.

    Raises:
      UserError: the folder has none.
    """
    place = pathlib.Path(path).expanduser()
    if not place.is_dir():
        return [place]
    suffixes = {*media.IMAGE_SUFFIXES}
    found = sorted(p for p in place.iterdir() if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        raise UserError(f'{path}: no pictures there; looked for {", ".join(sorted(suffixes))}')
    return found
