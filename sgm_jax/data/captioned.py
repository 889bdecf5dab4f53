"""Pictures with words, classes and sizes: what text-to-image and class-conditional models learn from."""

import logging
import pathlib

import numpy as np
from PIL import Image

from sgm_jax.data import files
from sgm_jax.data.records import check_split
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import to_float
from sgm_jax.sampling.media import read_image

LOG = logging.getLogger(__name__)
TEXTS = ('sidecar', 'name', 'none')


class CaptionedPictures:
    """Pictures of a folder, cropped to one size, with their captions and the sizes that SDXL is told.

    A picture is scaled until it just covers the record's size, then cropped: at random while training, in
    the middle otherwise. Every n-th picture is held out. Source of the size conditioning: Podell et al. 2023
    (SDXL, arXiv:2307.01952), section 2.2; sgm's AddOriginalImageSizeAsTupleAndCropToSquare.
    """

    def __init__(
        self,
        *,
        path: str,
        height: int,
        width: int,
        text: str = 'sidecar',
        classes: bool = False,
        aesthetic_score: float | None = None,
        split: str = 'train',
        held_out_fraction: float = 0.01,
        repeat: int = 1,
        flip: bool = False,
        min_size: int = 0,
    ):
        """Lists the pictures.

        Args:
          path: a picture, a folder, a pattern, or 'demo'.
          height, width: of a record, pixels.
          text: where the caption is: 'sidecar' (picture.txt beside picture.jpg), 'name' (the file's name,
            with spaces for - and _), or 'none' (no `txt`).
          classes: whether the first folder below `path` is the class: `cls` counts them in their order.
          aesthetic_score: told for every picture, for the refiner; None leaves it out.
          split: 'train', or 'held_out'.
          held_out_fraction: of the pictures, at least one.
          repeat: an epoch takes this many crops of each.
          flip: mirror half of them.
          min_size: pictures whose shorter side is less are left out when they are read for the first time.

        Raises:
          UserError: nothing usable at `path`, or options that make no sense.
        """
        if text not in TEXTS:
            raise UserError(f'data: text is {text!r}; choose one of: {", ".join(TEXTS)}')
        check_split(split)
        if not 0 < held_out_fraction < 1:
            raise UserError(
                f'data: held_out_fraction is {held_out_fraction}; give above 0 and below 1'
            )
        if min(height, width, repeat) < 1:
            raise UserError('data: height, width and repeat must be at least 1')
        self.path, self.split, self.size, self.repeat = path, split, (height, width), repeat
        self.text, self.flip, self.score = text, flip, aesthetic_score
        self.skipped: dict[str, str] = {}
        listed = files.list_pictures(path)
        found = [place for place in listed if self._usable(place, min_size)]
        every = max(2, round(1 / held_out_fraction))
        part = (
            found[::every] if split == 'held_out' else [p for i, p in enumerate(found) if i % every]
        )
        if not part:
            reason = next(iter(self.skipped.values()), 'there is only one')
            raise UserError(
                f'data: none of the pictures at {path} can be used for {split}: {reason}'
            )
        self.paths = part
        self.classes = None
        if classes:
            names = sorted({self._class(place) for place in listed})
            self.classes = {name: index for index, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.paths) * self.repeat

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`jpg` float32 (h, w, 3) in [-1, 1]; `txt`, `cls` where there are; sizes float32 (2,), (h, w)."""
        place = self.paths[index % len(self.paths)]
        pixels = read_image(place)
        crop, corner = _crop(pixels, self.size, rng if self.split == 'train' else None)
        mirrored = rng is not None and self.flip and rng.random() < 0.5
        crop = crop[:, ::-1] if mirrored else crop
        pair = lambda values: np.asarray(values, np.float32)
        record = {
            'jpg': to_float(crop),
            'original_size_as_tuple': pair(pixels.shape[:2]),
            'crop_coords_top_left': pair(corner),
            'target_size_as_tuple': pair(self.size),
        }
        if self.text != 'none':
            record['txt'] = np.str_(self._caption(place))
        if self.classes is not None:
            record['cls'] = np.int32(self.classes[self._class(place)])
        if self.score is not None:
            record['aesthetic_score'] = pair([self.score])
        return record

    def describe(self) -> str:
        """A few lines: how many, of what size, and what was skipped."""
        height, width = self.size
        lines = [
            f'captioned pictures ({self.split}): {len(self.paths)} at {self.path}, {height}x{width}'
        ]
        if self.classes:
            lines.append(f'  {len(self.classes)} classes')
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f'  {len(self.skipped)} pictures skipped; the first: {name}: {reason}')
        return '\n'.join(lines)

    def _usable(self, place: pathlib.Path, min_size: int) -> bool:
        reason = ''
        if self.text == 'sidecar' and not place.with_suffix('.txt').is_file():
            reason = f'it has no caption ({place.with_suffix(".txt").name})'
        elif min_size:
            with Image.open(place) as image:
                if min(image.size) < min_size:
                    reason = f'its shorter side is below {min_size}'
        if reason:
            self.skipped[str(place)] = reason
            LOG.warning('skipping a picture: %s: %s', place, reason)
        return not reason

    def _caption(self, place: pathlib.Path) -> str:
        if self.text == 'name':
            return ' '.join(place.stem.replace('-', ' ').replace('_', ' ').split())
        return place.with_suffix('.txt').read_text(encoding='utf-8').strip()

    def _class(self, place: pathlib.Path) -> str:
        relative = place.relative_to(pathlib.Path(self.path).expanduser())
        if len(relative.parts) < 2:
            raise UserError(f'data: {place} is in no folder of a class; {self.path}/CLASS/PICTURE')
        return relative.parts[0]


def _crop(
    pixels: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (h, w, 3) scaled to cover `size` and cropped, and the crop's (top, left) in what was scaled."""
    scale = max(s / p for s, p in zip(size, pixels.shape, strict=False))
    scaled = tuple(max(s, round(p * scale)) for s, p in zip(size, pixels.shape, strict=False))
    room = [big - small for big, small in zip(scaled, size, strict=True)]
    if rng is None:
        top, left = (space // 2 for space in room)
    else:
        top, left = (int(rng.integers(space + 1)) for space in room)
    image = Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)[top : top + size[0], left : left + size[1]], (top, left)
