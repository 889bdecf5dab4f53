"""Batches of one size each, from pictures or videos of all sizes: what is in which bucket, in what order.

The plan is made from their sizes (and lengths) before any is read. It is a function of the seed and of the
global batch: every host knows, without asking the others, that a step's batch has one bucket everywhere.
"""

import functools
import itertools
import logging

import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.sampling import buckets as shapes

LOG = logging.getLogger(__name__)


def bucket_sizes(
    buckets: str | tuple, base: tuple[int, int], multiple: int
) -> tuple[tuple[int, int], ...]:
    """The sizes (height, width) that `data.buckets` means; none of them for no buckets."""
    # A flag makes a tuple of one word.
    name = buckets[0] if len(buckets) == 1 and isinstance(buckets[0], str) else buckets
    if name == 'sdxl':
        return shapes.around(base, multiple)
    if isinstance(name, str):
        if name:
            raise UserError(f"data: buckets is {name!r}; give 'sdxl', or sizes (height, width)")
        return ()
    return _whole(buckets, '(height, width)')


def clip_sizes(buckets: tuple) -> tuple[tuple[int, int, int], ...]:
    """The sizes (frames, height, width) that `data.buckets` of videos means."""
    return _whole(buckets, '(frames, height, width)')


def _whole(buckets: tuple, of: str) -> tuple[tuple[int, ...], ...]:
    words = f'data: buckets is {buckets!r}; give sizes {of}, whole numbers from 1 on'
    try:
        sizes = tuple(tuple(int(side) for side in size) for size in buckets)
    except (TypeError, ValueError) as error:
        raise UserError(words) from error
    if any(len(size) != of.count(',') + 1 or min(size) < 1 for size in sizes):
        raise UserError(words)
    return sizes


def assign(
    shapes: np.ndarray,
    buckets: tuple[tuple[int, ...], ...],
    *,
    longest: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """int64 (n,): of each example the bucket nearest in shape (by the ratio of ratios); -1 where none fits.

    Args:
      shapes: (n, 2), height and width.
      buckets: (height, width), or (frames, height, width). Of several of one shape the longest is taken.
      longest: (n,) the most frames of each example, for buckets with frames.
      among: the numbers of the buckets that may be taken; by default all.
    """
    if not len(buckets):
        return np.zeros(len(shapes), np.int64)
    sizes = np.array(buckets)
    ratio = lambda pairs: np.log(pairs[:, 1].clip(1) / pairs[:, 0].clip(1))
    far = np.abs(ratio(np.asarray(shapes))[:, None] - ratio(sizes[:, -2:])[None])
    frames = sizes[:, 0] if sizes.shape[1] == 3 else np.zeros(len(sizes), np.int64)
    if longest is not None:
        far[longest[:, None] < frames[None]] = np.inf
    if among is not None:
        far[:, np.setdiff1d(np.arange(len(sizes)), among)] = np.inf
    best = far.min(1, keepdims=True)
    chosen = np.where(far <= best + 1e-9, frames[None], -1).argmax(1)
    return np.where(np.isfinite(best[:, 0]), chosen, -1)


class BucketPlan:
    """Positions in the endless global order to indices of a source with buckets.

    Each epoch shuffles every bucket, cuts it into batches, and shuffles the batches. Buckets with fewer
    examples than a batch hand them to the nearest buckets that have enough and suit them. What does not fill
    a batch is left out of the epoch, other examples in each; how many is in `leftovers`.

    A source with buckets has, besides its length, `buckets` (sizes), `bucket_of` and `shapes` (height, width)
    of each file, and of videos `longest`, in frames; index i is of file i % files.
    """

    def __init__(self, source, *, batch: int, seed: int):
        """`batch`: the global one. Raises a UserError where there are fewer examples than that."""
        self.batch, self.seed, self.length = batch, seed, len(source)
        self.sizes = source.buckets
        files = len(source.bucket_of)
        of, self.moved = _without_small(source, batch, len(source) // files)
        self.lost = int((of < 0).sum())
        of = np.tile(of, len(source) // files)
        self.members = {int(b): np.flatnonzero(of == b) for b in np.unique(of[of >= 0])}
        self.leftovers = {b: len(m) % batch for b, m in self.members.items()}
        # Threads that read ahead are in two epochs at once.
        self.epoch = functools.lru_cache(maxsize=3)(self._shuffled)
        self.per_epoch = sum(len(m) // batch for m in self.members.values()) * batch
        if not self.per_epoch:
            more = 'windows_per_video' if len(self.sizes[0]) == 3 else 'repeat'
            raise UserError(
                f'data: buckets need at least a batch of {batch} examples of one size, there are '
                f'{len(source)} in all; raise data.{more}, or lower train.batch_size'
            )

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(int(position), self.per_epoch)
        return int(self.epoch(epoch)[place])

    def order(self, begin: int = 0) -> list[tuple[int, ...]]:
        """The sizes that batches have, as they first come from batch `begin` on."""
        found, batches = {}, itertools.count(begin)
        while len(found) < len(self.members):
            found.setdefault(self[next(batches) * self.batch] // self.length - 1)
        return [self.sizes[bucket] for bucket in found]

    def describe(self) -> str:
        """Which buckets there are, and what is left over."""
        name = lambda b: 'x'.join(map(str, self.sizes[b]))
        counts = ', '.join(f'{name(b)} {len(m)}' for b, m in self.members.items())
        of = (
            'frames x height x width, windows'
            if len(self.sizes[0]) == 3
            else 'height x width, pictures'
        )
        lines = [f'{len(self.members)} buckets ({of}): {counts}']
        if self.moved:
            moved = ', '.join(f'{count} of {name(b)}' for b, count in self.moved.items())
            lines.append(f'  in the nearest bucket, for less than a batch of {self.batch}: {moved}')
        if self.lost:
            lines.append(
                f'  {self.lost} files are never read: too short for the buckets that are left'
            )
        if any(self.leftovers.values()):
            left = ', '.join(
                f'{count} of {name(b)}' for b, count in self.leftovers.items() if count
            )
            total = sum(self.leftovers.values())
            lines.append(f'  {total} left out of each epoch, other ones each time: {left}')
        return '\n'.join(lines)

    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        batches = []
        for bucket, members in self.members.items():
            shuffled = rng.permutation(members)
            whole = shuffled[: len(members) - len(members) % self.batch]
            # As `record` of the sources reads them.
            batches.append((whole + (bucket + 1) * self.length).reshape(-1, self.batch))
        return rng.permutation(np.concatenate(batches)).reshape(-1)


def _without_small(source, batch: int, repeats: int) -> tuple[np.ndarray, dict[int, int]]:
    """The bucket of each file without buckets below a batch, and how many examples each gave away.

    First goes the bucket that loses the fewest files (-1) for want of another that suits them, then the
    smallest.
    """
    of, moved = source.bucket_of.copy(), {}
    longest = getattr(source, 'longest', None)
    while True:
        counts = np.bincount(of[of >= 0], minlength=len(source.buckets)) * repeats
        there = np.flatnonzero(counts)
        small = [bucket for bucket in there if counts[bucket] < batch]
        if not small or len(there) == 1:
            return of, moved
        ways = []
        for bucket in small:
            files = np.flatnonzero(of == bucket)
            to = assign(
                source.shapes[files],
                source.buckets,
                longest=None if longest is None else longest[files],
                among=there[there != bucket],
            )
            ways.append(((to < 0).sum(), counts[bucket], bucket, files, to))
        _, count, bucket, files, to = min(ways, key=lambda way: way[:3])
        moved[int(bucket)] = int(count)
        of[files] = to
