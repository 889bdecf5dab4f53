"""Pictures with words, classes and sizes: what text-to-image and class-conditional models learn from."""

import io
import logging

import cv2
import numpy as np

from sgm_jax.data.bucket_plan import assign, bucket_sizes
from sgm_jax.data.damage import Damage, DamagedError
from sgm_jax.data.identity import digest
from sgm_jax.data.picture_sizes import picture_sizes
from sgm_jax.data.records import check_split
from sgm_jax.data.stores import caption_of, check_text, open_store
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import to_float
from sgm_jax.sampling.media import decode_image

LOG = logging.getLogger(__name__)
# Pictures tried for one record before the data are called broken.
ATTEMPTS = 20


class CaptionedPictures:
    """Pictures with their captions, cropped to one size or to buckets, and the sizes that SDXL is told.

    A picture is scaled until it just covers the record's size, then cropped: at random while training, in
    the middle otherwise. Every n-th picture is held out, unless the files themselves have splits. Source of
    the size conditioning: Podell et al. 2023 (SDXL, arXiv:2307.01952), sections 2.2 and 2.3; sgm's
    AddOriginalImageSizeAsTupleAndCropToSquare.
    """

    def __init__(
        self,
        *,
        path: str,
        height: int,
        width: int,
        format: str = 'auto',
        text: str = 'sidecar',
        caption: str = '',
        classes: bool = False,
        aesthetic_score: float | None = None,
        split: str = 'train',
        held_out_fraction: float = 0.01,
        repeat: int = 1,
        random: bool = True,
        flip: bool = False,
        min_size: int = 0,
        buckets: str | tuple[tuple[int, int], ...] = (),
        bucket_multiple: int = 64,
        max_damaged: float = 0.01,
    ):
        """Lists the pictures.

        Args:
          path: a picture, a folder, a pattern, an address (gs://, s3://), or 'demo'.
          height, width: of a record, pixels; of held-out ones also with buckets.
          format: 'folder', 'tars' (WebDataset's), 'array_record' (files of tf.train.Examples, such as
            those of TensorFlow Datasets), 'arrow' (a Hugging Face dataset on disk), or 'auto', which looks.
          text: where the caption is: 'sidecar' (with the picture: picture.txt beside picture.jpg or a table
            metadata.jsonl, .csv or .parquet; a tar's .txt or .json; a column), 'name' (the file's name, with
            spaces for - and _), or 'none' (no `txt`).
          caption: the table's column, or the key in .json; '' for text, caption, txt or prompt.
          classes: whether there is a class: of folders the first below `path`, counted in their order; .cls
            in tars; label in tables.
          aesthetic_score: told for every picture, for the refiner; None leaves it out.
          split: 'train', or 'held_out'.
          held_out_fraction: of the pictures, at least one.
          repeat: an epoch takes this many crops of each.
          random: False for centre crops in training too.
          flip: mirror half of them; the crop's corner is told as it is in the mirrored picture.
          min_size: pictures whose shorter side is less are left out.
          buckets: 'sdxl' (its shapes, scaled to the area of height x width), or sizes (height, width):
            batches of training then have one of these sizes each, that nearest to their pictures' shapes.
          bucket_multiple: what sides of scaled buckets are multiples of.
          max_damaged: the share of damaged pictures that ends the run; see `sgm_jax.data.damage`.

        Raises:
          UserError: nothing usable at `path`, or options that make no sense.
        """
        check_text(text)
        check_split(split)
        if not 0 < held_out_fraction < 1:
            raise UserError(
                f'data: held_out_fraction is {held_out_fraction}; give above 0 and below 1'
            )
        if min(height, width, repeat) < 1:
            raise UserError('data: height, width and repeat must be at least 1')
        self.path, self.split, self.size, self.repeat = path, split, (height, width), repeat
        self.text, self.score, self.classes = text, aesthetic_score, classes
        self.drawn, self.flip = random and split == 'train', flip and split == 'train'
        of_training = bucket_sizes(buckets, self.size, bucket_multiple)
        self.buckets = of_training if split == 'train' else ()
        self.store = open_store(
            path, split=split, format=format, wants_text=text == 'sidecar', caption=caption
        )
        self.skipped = dict(self.store.skipped)
        total = len(self.store) + len(self.store.damaged)
        self.damage = Damage(total, limit=max_damaged, what='picture')
        self.damage.update(self.store.damaged)
        # Both splits know the same of each picture, and leave the same ones out.
        found, sizes = self._usable(min_size, measured=bool(min_size or of_training))
        for name, reason in self.skipped.items():
            LOG.warning('skipping a picture: %s: %s', name, reason)
        every = max(2, round(1 / held_out_fraction))
        if not self.store.own_split:
            # By the picture's own number: what another one is like changes nothing.
            held_out = found % every == 0
            if not held_out.any():
                held_out[:1] = True
            chosen = held_out if split == 'held_out' else ~held_out
            found, sizes = found[chosen], sizes[chosen]
        if not len(found):
            left_out = [*self.damage.names.values(), *self.skipped.values(), 'there is only one']
            raise UserError(
                f'data: none of the pictures at {path} can be used for {split}: {left_out[0]}'
            )
        self.members, self.shapes = found, sizes
        self.bucket_of = assign(sizes, self.buckets)

    def __len__(self) -> int:
        return len(self.members) * self.repeat

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`jpg` float32 (h, w, 3) in [-1, 1]; `txt`, `cls` where there are; sizes float32 (2,), (h, w).

        Should the picture prove damaged, the next usable one is taken. Indices beyond the length ask for
        buckets: those of the n-th bucket (from 1) follow n lengths.

        Raises:
          UserError: too many are damaged, or `ATTEMPTS` in a row.
        """
        bucket, index = divmod(index, len(self))
        size = self.buckets[bucket - 1] if bucket else self.size
        for attempt in range(ATTEMPTS):
            number = int(self.members[(index + attempt) % len(self.members)])
            try:
                pixels, told = self._read(number)
            except DamagedError as error:
                self.damage.add(error.name, error.reason)
                continue
            return {**_framed(pixels, size, rng if self.drawn else None, self.flip), **told}
        raise UserError(
            f'data: {ATTEMPTS} pictures in a row could not be read, the last {self.store.name(number)}; '
            'remove the damaged files (the log names them)'
        )

    def describe(self) -> str:
        """A few lines: how many, of what size, and what was skipped."""
        height, width = self.size
        size = f'{len(self.buckets)} buckets' if self.buckets else f'{height}x{width}'
        lines = [f'captioned pictures ({self.split}): {len(self.members)} at {self.path}, {size}']
        if self.classes and self.store.labels:
            lines.append(f'  {len(self.store.labels)} classes')
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f'  {len(self.skipped)} pictures skipped; the first: {name}: {reason}')
        return '\n'.join([*lines, *self.damage.lines()])

    def identity(self) -> str:
        """Of the pictures that are used: names and, where they matter, sizes (`sgm_jax.data.identity`)."""
        return digest('pictures', map(self.store.name, self.members.tolist()), self.shapes)

    def _usable(self, min_size: int, *, measured: bool) -> tuple[np.ndarray, np.ndarray]:
        """The store's numbers of the pictures that may be used, and their sizes where they matter."""
        numbers = np.arange(len(self.store))
        if not measured:
            return numbers, np.zeros((len(numbers), 2), np.int32)
        sizes, wrong = picture_sizes(self.store, self.path)
        self.damage.update({error.name: error.reason for error in wrong.values()})
        shorter = sizes.min(1, initial=2**30)
        for number in np.flatnonzero((shorter > 0) & (shorter < min_size)):
            self.skipped[self.store.name(number)] = f'its shorter side is below {min_size}'
        usable = (shorter > 0) & (shorter >= min_size)
        return numbers[usable], sizes[usable]

    def _read(self, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        name, told = self.store.name(number), {}
        data = self.store.picture(number)
        if not data:
            raise DamagedError(name, 'the file is empty')
        if self.text != 'none':
            told['txt'] = np.str_(caption_of(self.store, number, self.text))
        if self.classes:
            told['cls'] = np.int32(self._class(number))
        if self.score is not None:
            told['aesthetic_score'] = np.asarray([self.score], np.float32)
        try:
            return decode_image(io.BytesIO(data)), told
        except ValueError as error:
            raise DamagedError(name, f'not a readable picture ({error})') from error

    def _class(self, number: int) -> int:
        label, name = self.store.label(number), self.store.name(number)
        if label is None:
            raise UserError(
                f'data: {name} has no class: folders have {self.path}/CLASS/PICTURE, tars .cls, tables label'
            )
        return self.store.labels[label] if isinstance(label, str) else label


def _framed(
    pixels: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None, flip: bool
) -> dict[str, np.ndarray]:
    """What a record says of uint8 (h, w, 3): scaled to cover `size`, cropped, and perhaps mirrored."""
    scale = max(s / p for s, p in zip(size, pixels.shape, strict=False))
    scaled = tuple(max(s, round(p * scale)) for s, p in zip(size, pixels.shape, strict=False))
    room = [big - small for big, small in zip(scaled, size, strict=True)]
    if rng is None:
        top, left = (space // 2 for space in room)
    else:
        top, left = (int(rng.integers(space + 1)) for space in room)
    crop = _resized(pixels, scaled)[top : top + size[0], left : left + size[1]]
    if rng is not None and flip and rng.random() < 0.5:
        # As if the whole picture had been mirrored before: what was cut off at the right is at the left.
        crop, left = crop[:, ::-1], room[1] - left
    pair = lambda values: np.asarray(values, np.float32)
    return {
        'jpg': to_float(crop),
        'original_size_as_tuple': pair(pixels.shape[:2]),
        'crop_coords_top_left': pair((top, left)),
        'target_size_as_tuple': pair(size),
    }


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Smaller by areas, which antialiases; larger by cubics. As img2dataset does for LAION."""
    if pixels.shape[:2] == size:
        return pixels
    smaller = size[0] < pixels.shape[0]
    kind = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    # The pipeline's threads are enough.
    cv2.setNumThreads(1)
    return cv2.resize(pixels, size[::-1], interpolation=kind)
