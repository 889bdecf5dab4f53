"""Sources of pictures: crops of files, single frames of videos, and several sources as one."""

import logging
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from sgm_jax.config import build, plain
from sgm_jax.data import files, places
from sgm_jax.data.damage import Damage, DamagedError
from sgm_jax.data.facts import facts
from sgm_jax.data.folders import Folder
from sgm_jax.data.framing import Framing
from sgm_jax.data.identity import digest, identity
from sgm_jax.data.records import check_split
from sgm_jax.data.videos import VideoClips
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import to_float
from sgm_jax.sampling.media import decode_image

LOG = logging.getLogger(__name__)


class Pictures:
    """Random crops of the pictures in a folder, which are kept in memory as far as they fit.

    A part of every picture, at its right, is held out: no crop crosses the boundary.
    """

    def __init__(
        self,
        *,
        path: str,
        height: int,
        width: int,
        split: str = 'train',
        held_out_fraction: float = 0.2,
        crops_per_picture: int = 16,
        random: bool = True,
        crop_scale: tuple[float, float] = (0.3, 1.0),
        flip: bool = True,
        cache_bytes: int = 2**30,
        max_damaged: float = 0.01,
    ):
        """Lists the pictures; those that cannot be read are logged and counted in `skipped`.

        Args:
          path: a picture, a folder, a pattern, or 'demo'.
          height, width: of a record, pixels.
          split: 'train', or 'held_out'.
          held_out_fraction: of each picture's width.
          crops_per_picture: an epoch takes this many crops of each.
          random: False for the largest crop, in the centre. Held-out crops are fixed: of the record's own
            size, spread over the part that is held out.
          crop_scale: range of a random crop's side, 1 being the largest that fits; never enlarged.
          flip: mirror half of the crops.
          cache_bytes: the most that is kept decoded.
          max_damaged: the share of damaged pictures that ends the run; see `sgm_jax.data.damage`.

        Raises:
          UserError: nothing usable at `path`, or options that make no sense.
        """
        check_split(split)
        if not 0 <= held_out_fraction < 1 or (split == 'held_out' and not held_out_fraction):
            raise UserError(
                f'data: held_out_fraction is {held_out_fraction}; give above 0 and below 1'
            )
        if min(height, width, crops_per_picture) < 1:
            raise UserError('data: height, width and crops_per_picture must be at least 1')
        self.path, self.split, self.size = path, split, (height, width)
        self.fraction, self.crops = held_out_fraction, crops_per_picture
        self.drawn = random and split == 'train'
        self.framing = Framing(size=self.size, scale=crop_scale, flip=flip)
        self.skipped: dict[str, str] = {}
        self.paths: list[pathlib.Path] = []
        self.shapes: list[tuple[int, int]] = []
        self._kept: dict[int, np.ndarray] = {}
        self._room, self._lock = cache_bytes, threading.Lock()
        listed = files.list_pictures(path)
        self.damage = Damage(len(listed), limit=max_damaged, what='picture')
        sizes, wrong = self._sizes(listed)
        for index, place in enumerate(listed):
            if index in wrong:
                self.skipped[str(place)] = wrong[index].reason
            elif min(self._part(*sizes[index].tolist())[1] / self.size) < 1:
                self._skip(place, f'its part for {split} is smaller than {height}x{width}')
            else:
                self.paths.append(place)
                self.shapes.append(tuple(sizes[index].tolist()))
        self.damage.update({error.name: error.reason for error in wrong.values()})
        if not self.paths:
            name, reason = next(iter(self.skipped.items()))
            raise UserError(
                f'data: none of the {len(self.skipped)} pictures at {path} can be used for {split}; the '
                f'first: {name}: {reason}'
            )

    def __len__(self) -> int:
        return len(self.paths) * self.crops

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`jpg`, float32 (h, w, 3) in [-1, 1]."""
        part, file = divmod(index % len(self), len(self.paths))
        pixels = self._pixels(file)
        if self.split == 'held_out':
            frame = self._spread(pixels, part)
        else:
            frame = self.framing(pixels[None], rng if self.drawn else None)[0]
        return {'jpg': to_float(frame)}

    def describe(self) -> str:
        """A few lines: how many, of what size, and what was skipped."""
        height, width = self.size
        lines = [
            f'pictures ({self.split}): {len(self.paths)} at {self.path}, {len(self)} crops of '
            f'{height}x{width} per epoch'
        ]
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f'  {len(self.skipped)} pictures skipped; the first: {name}: {reason}')
        return '\n'.join(lines)

    def identity(self) -> str:
        """Of the pictures that are used: paths and sizes (`sgm_jax.data.identity`)."""
        return digest('pictures', map(str, self.paths), np.array(self.shapes, np.int64))

    def _read(self, place) -> np.ndarray:
        try:
            pixels = decode_image(place)
        except ValueError as error:
            raise _unreadable(place, error) from error
        columns, _ = self._part(*pixels.shape[:2])
        return np.ascontiguousarray(pixels[:, columns])

    def _part(self, height: int, width: int) -> tuple[slice, np.ndarray]:
        """Of a picture: the columns that this split has, and their size."""
        cut = round(width * (1 - self.fraction))
        columns = slice(0, cut) if self.split == 'train' else slice(cut, width)
        return columns, np.array([height, columns.stop - columns.start])

    def _sizes(
        self, listed: Sequence[pathlib.Path]
    ) -> tuple[np.ndarray, Mapping[int, DamagedError]]:
        """Of each picture, for which it is decoded in full; and those that cannot be."""

        def size(index: int) -> tuple[int, int] | DamagedError:
            try:
                return decode_image(listed[index]).shape[:2]
            except ValueError as error:
                return _unreadable(listed[index], error)

        entries = [places.entry_of(str(place), place.stat()) for place in listed]
        store, threads = Folder(str(self.path), entries), os.cpu_count() or 1
        return facts(
            'decoded', store, str(self.path), size, columns=2, threads=threads, worth_keeping=256
        )

    def _pixels(self, file: int) -> np.ndarray:
        pixels = self._kept.get(file)
        if pixels is None:
            pixels = self._read_or_next(file)
            with self._lock:
                if file not in self._kept and pixels.nbytes <= self._room:
                    self._room -= pixels.nbytes
                    self._kept[file] = pixels
        return pixels

    def _read_or_next(self, file: int) -> np.ndarray:
        # All were good when they were listed; what breaks since is replaced by the next that is left.
        for place in self.paths[file:] + self.paths[:file]:
            try:
                return self._read(place)
            except DamagedError as error:
                self.damage.add(error.name, error.reason)
        raise UserError(f'data: none of the pictures at {self.path} can be read any more')

    def _spread(self, pixels: np.ndarray, part: int) -> np.ndarray:
        down, across = (p - s for p, s in zip(pixels.shape, self.size, strict=False))
        top = round(down * (part + 0.5) / self.crops)
        left = round(across * (part * 0.61803 % 1.0))  # spread, and never in step with the height
        return pixels[top : top + self.size[0], left : left + self.size[1]]

    def _skip(self, place, reason: str) -> None:
        self.skipped[str(place)] = reason
        LOG.warning('skipping a picture: %s: %s', place, reason)


def _unreadable(place: pathlib.Path, error: ValueError) -> DamagedError:
    return DamagedError(str(place), f'not a readable picture ({error})')


class VideoFrames:
    """Single frames of videos, as pictures; the options are those of `video_clips`."""

    def __init__(
        self,
        *,
        path: str,
        height: int,
        width: int,
        split: str = 'train',
        held_out_fraction: float = 0.2,
        windows_per_video: int = 16,
        random: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: bool = False,
        cache: bool = False,
        text: str = 'none',
        max_damaged: float = 0.01,
    ):
        self.clips = VideoClips(
            path=path,
            num_frames=1,
            height=height,
            width=width,
            split=split,
            held_out_fraction=held_out_fraction,
            windows_per_video=windows_per_video,
            random=random,
            crop_scale=crop_scale,
            flip=flip,
            cache=cache,
            text=text,
            max_damaged=max_damaged,
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`jpg`, float32 (h, w, 3) in [-1, 1]; `txt` where there is."""
        record = self.clips.record(index, rng)
        told = {'txt': record['txt']} if 'txt' in record else {}
        return {'jpg': record['jpg'][0], **told}

    def describe(self) -> str:
        """As of the clips."""
        return self.clips.describe()

    def identity(self) -> str:
        """As of the clips."""
        return self.clips.identity()


class Mixture:
    """The records of several sources, in the shares of their lengths or in given ones."""

    def __init__(
        self,
        *,
        sources: Sequence[Mapping],
        table: Mapping,
        weights: Sequence[float] = (),
        repeats: Sequence[int] = (),
        split: str = 'train',
    ):
        """Opens the sources.

        Args:
          sources: nodes of `config.data`.
          table: what their names stand for.
          weights: of each source, its share of an epoch (they need not sum to one), which is as long as it
            must be for every record to come at least once.
          repeats: or, of each source, how often an epoch has each of its records.
          split: 'train', or 'held_out', where each source has the share of its length.
        """
        if not sources:
            raise UserError('data: a mixture needs sources')
        for name, given in (('weights', weights), ('repeats', repeats)):
            if given and (len(given) != len(sources) or min(given) <= 0):
                raise UserError(
                    f'data: {name} is {tuple(given)}; give one above 0 for each of the {len(sources)} sources'
                )
        if weights and repeats:
            raise UserError('data: a mixture takes weights or repeats, not both')
        self.sources = [
            build(table, {**plain(node), 'split': split}, where=f'data.sources[{index}]')
            for index, node in enumerate(sources)
        ]
        for index, source in enumerate(self.sources):
            if getattr(source, 'buckets', ()):
                raise UserError(f'data.sources[{index}]: a mixture has one size; leave buckets out')
        self._check_alike()
        lengths = np.array([len(source) for source in self.sources], np.int64)
        counts = lengths
        if split == 'train' and repeats:
            counts = lengths * np.array(repeats, np.int64)
        elif split == 'train' and weights:
            shares = np.array(weights, np.float64)
            counts = np.maximum(
                lengths, np.round((lengths / shares).max() * shares).astype(np.int64)
            )
        if counts.sum() >= 2**32:
            raise UserError(
                f'data: with these weights an epoch has {counts.sum()} records; too many'
            )
        self.ends = np.cumsum(counts)
        self._turns = _in_turn(lengths) if split == 'held_out' else None

    def _check_alike(self) -> None:
        first = None
        for index, source in enumerate(self.sources):
            shapes = {key: np.shape(value) for key, value in source.record(0, None).items()}
            first = first or shapes
            if shapes != first:
                raise UserError(
                    f'data.sources[{index}]: its records are {_said(shapes)}, those of sources[0] are '
                    f'{_said(first)}; a mixture has records of one kind and size'
                )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The record of the source that has this index; of what is held out, sources take turns."""
        if self._turns is not None:
            number, place = self._turns[index]
            return self.sources[number].record(int(place), rng)
        number = int(np.searchsorted(self.ends, index, side='right'))
        source = self.sources[number]
        begin = int(self.ends[number - 1]) if number else 0
        return source.record((index - begin) % len(source), rng)

    def describe(self) -> str:
        """As of the sources, one after the other, with the share of each."""
        counts = np.diff(self.ends, prepend=0)
        shares = [f'{100 * count / len(self):.1f}% of a mixture: ' for count in counts]
        return '\n'.join(a + b.describe() for a, b in zip(shares, self.sources, strict=True))

    def identity(self) -> str:
        """As of the sources, one after the other."""
        return ', '.join(map(identity, self.sources))


def _in_turn(lengths: np.ndarray) -> np.ndarray:
    """(source, record) of each index: any first ones have of each source its share."""
    rows = np.concatenate(
        [np.stack([np.full(n, i), np.arange(n)], 1) for i, n in enumerate(lengths)]
    )
    when = np.concatenate([(np.arange(n) + 0.5) / n for n in lengths])
    return rows[np.argsort(when, kind='stable')]


def _said(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ', '.join(f'{key} {"x".join(map(str, shape)) or "one"}' for key, shape in shapes.items())
