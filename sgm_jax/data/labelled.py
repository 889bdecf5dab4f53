"""Pictures with a class: datasets by name, and the handwritten digits inside scikit-learn."""

import logging
from collections.abc import Mapping

import numpy as np
from PIL import Image

from sgm_jax.data.records import check_split
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import to_float

LOG = logging.getLogger(__name__)
DIGITS = 'digits'
# Of the digits, the first ones are learned from: writers do not appear in both parts.
_TRAINED = 1437


class Labelled:
    """Pictures (n, h, w, c) in memory or behind an index, with their classes."""

    def __init__(
        self,
        *,
        dataset: str = DIGITS,
        data_dir: str = '',
        height: int = 28,
        width: int = 28,
        split: str = 'train',
        flip: bool = False,
    ):
        """Opens a dataset that is there already; nothing is downloaded.

        Args:
          dataset: 'digits' (scikit-learn's 1797 of 8x8, enlarged), or a name in TensorFlow Datasets whose
            examples have 'image' and 'label'. A dataset that was never prepared is replaced by the digits
            if it is one of digits too (mnist), with a warning that says so.
          data_dir: where TensorFlow Datasets keeps its files; '' for its own default.
          height, width: of a record, pixels.
          split: 'train', or 'held_out' (a dataset's 'test' or 'validation').
          flip: mirror half of the pictures.

        Raises:
          UserError: the dataset is unknown or not prepared; the way to prepare it is named.
        """
        check_split(split)
        if min(height, width) < 1:
            raise UserError('data: height and width must be at least 1')
        self.size, self.flip, self.split = (height, width), flip and split == 'train', split
        self.name = dataset
        if dataset != DIGITS:
            try:
                self._examples = _prepared(dataset, data_dir, split)
                return
            except UserError as error:
                if dataset != 'mnist':
                    raise
                LOG.warning('%s; taking the digits inside scikit-learn instead', error)
                self.name = DIGITS
        self._examples = _digits(split)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`jpg`, float32 (h, w, c) in [-1, 1], and `cls`, int32 ()."""
        example = self._examples[index % len(self)]
        pixels = np.asarray(example['image'], np.uint8)
        if pixels.shape[:2] != self.size:
            pixels = _resized(pixels, self.size)
        if rng is not None and self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return {'jpg': np.ascontiguousarray(to_float(pixels)), 'cls': np.int32(example['label'])}

    def describe(self) -> str:
        """One line."""
        height, width = self.size
        return f'{self.name} ({self.split}): {len(self)} pictures, given as {height}x{width}'


def _digits(split: str) -> list[Mapping]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the digits are in a package that is not installed; run 'pip install scikit-learn'"
        ) from error
    digits = load_digits()
    # 17 levels of ink.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    part = slice(_TRAINED) if split == 'train' else slice(_TRAINED, None)
    pairs = zip(images[part], digits.target[part], strict=True)
    return [{'image': image, 'label': label} for image, label in pairs]


def _prepared(dataset: str, data_dir: str, split: str):
    import tensorflow_datasets as tfds

    way = (
        f'where there is a network, prepare it once with: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}', file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = tfds.builder(dataset, data_dir=data_dir or None, file_format='array_record')
        names = ('train',) if split == 'train' else ('test', 'validation')
        there = [name for name in names if name in builder.info.splits]
        if there:
            return builder.as_data_source(split=there[0])
    except Exception as error:  # TFDS raises many kinds, some of them its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'data: the dataset {dataset!r} cannot be opened ({reason}); {way}'
        ) from error
    raise UserError(f'data: the dataset {dataset!r} is not on this machine; {way}')


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
    return resized[..., None] if grey else resized
