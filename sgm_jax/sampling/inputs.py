"""What a user gives, as arrays: pictures, files of prompts, and numbers within their limits."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage

from sgm_jax.errors import UserError
from sgm_jax.sampling.media import read_image, resize_crop

Image = str | pathlib.Path | np.ndarray


def read_images(image: Image | Sequence[Image], size: tuple[int, int]) -> np.ndarray:
    """uint8 (n, *size, 3) of a path or uint8 (h, w, 3), or several; cropped at the centre and scaled."""
    return np.stack([_read_one(x, size) for x in each(image)])


def each(image: Image | Sequence[Image]) -> list[Image]:
    """One picture or several, as a list."""
    several = isinstance(image, Sequence) and not isinstance(image, str)
    several = several or (isinstance(image, np.ndarray) and image.ndim == 4)
    images = list(image) if several else [image]
    if not images:
        raise UserError('no picture was given; give image=')
    return images


def _read_one(image: Image, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(image, size)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f'pictures are uint8 (h, w, 3), got {image.dtype} {image.shape}')
    return resize_crop(image, size)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 to [-1, 1]."""
    if images.dtype != np.uint8:
        raise UserError(f'pictures are uint8 (0 to 255), got {images.dtype}')
    scaled = images.astype(np.float32)
    # In place: a batch of video is large.
    scaled /= 127.5
    scaled -= 1.0
    return scaled


def to_grey(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, 3) to (n, h, w, 1), by the luma of ITU-R BT.601."""
    return np.stack([np.asarray(PILImage.fromarray(x).convert('L')) for x in images])[..., None]


def read_prompts(path: str | pathlib.Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
      UserError: there is no such file, it is no text, or has no prompt.
    """
    path = pathlib.Path(path).expanduser()
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not UTF-8 text'
        raise UserError(f'{path}: cannot read prompts ({reason}); give a text file') from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f'{path}: no prompt in it; write one on each line')
    return prompts


def numbers(name: str, words: Sequence[str] | None) -> list[float] | None:
    """The numbers that a flag's words are; None stays None.

    Raises:
      UserError: one of them is no number.
    """
    try:
        return None if words is None else [float(word) for word in words]
    except ValueError as error:
        raise UserError(f'{name} has {",".join(words)!r}; give numbers, as 10,20,30') from error


def at_least_one(**numbers: int) -> None:
    """Raises a UserError for the first number below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f'{name} is {value}; give 1 or more')


def not_negative(**numbers: float) -> None:
    """Raises a UserError for the first number below 0."""
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f'{name} is {value}; give 0 or more')


# JAX's keys are made of as many bits: larger seeds would be others' again.
_SEEDS = 2**32


def check_seed(seed: int, count: int = 1) -> None:
    """Raises a UserError unless there are `count` seeds from this one on."""
    if seed < 0 or seed + count > _SEEDS:
        last = (
            f' (the last of {count} pictures has {seed + count - 1})' if 0 <= seed < _SEEDS else ''
        )
        raise UserError(f'seed is {seed}{last}; give 0 to {_SEEDS - 1}')
