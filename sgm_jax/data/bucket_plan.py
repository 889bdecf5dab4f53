"""Batches of one size each, from pictures of all shapes: which picture is in which bucket, and in what order.

The plan is made from the pictures' sizes before any is read. It is a function of the seed and of the global
batch: every host knows, without asking the others, that a step's batch has the same bucket everywhere.
"""

import functools
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
    sizes = tuple(tuple(int(side) for side in size) for size in buckets)
    if any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise UserError(f'data: buckets is {buckets}; its sizes are pairs (height, width)')
    return sizes


def assign(sizes: np.ndarray, buckets: tuple[tuple[int, int], ...]) -> np.ndarray:
    """int64 (n,): of each picture (height, width), the bucket nearest in shape (by the ratio of ratios)."""
    if not buckets:
        return np.zeros(len(sizes), np.int64)
    return _distances(sizes, np.array(buckets)).argmin(1)


class BucketPlan:
    """Positions in the endless global order to indices of a source with buckets.

    Each epoch shuffles every bucket, cuts it into batches, and shuffles the batches. Buckets with fewer
    pictures than a batch hand them to the nearest bucket that has enough. What does not fill a batch is left
    out of the epoch, other pictures in each; how many is in `leftovers`.
    """

    def __init__(self, source, *, batch: int, seed: int):
        """`batch`: the global one. Raises a UserError where there are fewer pictures than that."""
        self.batch, self.seed, self.length = batch, seed, len(source)
        if len(source) < batch:
            raise UserError(
                f'data: buckets need at least a batch of {batch} examples, there are {len(source)}; '
                'raise data.repeat, or lower train.batch_size'
            )
        repeats = len(source) // len(source.bucket_of)
        of = np.tile(source.bucket_of, repeats)
        self.sizes = np.array(source.buckets)
        of, self.moved = _without_small(of, self.sizes, batch)
        self.members = {int(b): np.flatnonzero(of == b) for b in np.unique(of)}
        self.leftovers = {b: len(m) % batch for b, m in self.members.items()}
        # Threads that read ahead are in two epochs at once.
        self.epoch = functools.lru_cache(maxsize=3)(self._shuffled)
        self.per_epoch = sum(len(m) // batch for m in self.members.values()) * batch

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(int(position), self.per_epoch)
        return int(self.epoch(epoch)[place])

    def describe(self) -> str:
        """Which buckets there are, and what is left over."""
        name = lambda b: f'{self.sizes[b][0]}x{self.sizes[b][1]}'
        counts = ', '.join(f'{name(b)} {len(m)}' for b, m in self.members.items())
        lines = [f'{len(self.members)} buckets (height x width, pictures): {counts}']
        if self.moved:
            moved = ', '.join(f'{count} of {name(b)}' for b, count in self.moved.items())
            lines.append(f'  in the nearest bucket, for less than a batch of {self.batch}: {moved}')
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
            # As CaptionedPictures.record reads them.
            batches.append((whole + (bucket + 1) * self.length).reshape(-1, self.batch))
        return rng.permutation(np.concatenate(batches)).reshape(-1)


def _without_small(
    of: np.ndarray, sizes: np.ndarray, batch: int
) -> tuple[np.ndarray, dict[int, int]]:
    """The assignment without buckets below a batch, smallest first, and how many each of them gave away."""
    of, moved = of.copy(), {}
    while True:
        counts = np.bincount(of, minlength=len(sizes))
        there = np.flatnonzero(counts)
        small = min(there, key=lambda b: (counts[b], b))
        if counts[small] >= batch or len(there) == 1:
            return of, moved
        others = there[there != small]
        nearest = others[_distances(sizes[[small]], sizes[others])[0].argmin()]
        moved[int(small)] = int(counts[small])
        of[of == small] = nearest


def _distances(sizes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    logs = lambda pairs: np.log(pairs[:, 1].clip(1) / pairs[:, 0].clip(1))
    return np.abs(logs(sizes)[:, None] - logs(buckets)[None])
