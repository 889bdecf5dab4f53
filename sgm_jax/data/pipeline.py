"""From a source to an endless, shuffled, sharded, resumable stream of batches, with Grain.

Which records are in batch i, and every number drawn for them, is a function of (seed, i) alone: not of the
number of threads, and not of the number of hosts. For the draws follow the position in the global order, of
which each batch is the next part, and a host reads those rows of each batch that its devices need.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np

from sgm_jax.config import build, plain
from sgm_jax.data import identity as identities
from sgm_jax.data.bucket_plan import BucketPlan
from sgm_jax.data.sources import SOURCES, Source
from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


def make_source(config_data: Mapping, *, split: str | None = None) -> Source:
    """The source that the node names; `split` replaces the node's own."""
    node = dict(plain(config_data))
    if split is not None:
        node['split'] = split
    return build(SOURCES, node, where='data')


def make_iterator(
    config_data: Mapping | Source,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    num_threads: int = 2,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """An endless iterator of batches, reshuffled every epoch.

    Args:
      config_data: `config.data`, or a source made from it by `make_source`.
      batch_size: of all hosts together.
      seed: of the order and of everything drawn.
      rows: those of each batch that this host reads, from 0; by default all of them.
      num_threads: that read batches ahead; 0 reads in the caller's thread.
      prefetch: batches kept ready.

    Returns:
      An iterator with `get_state` and `set_state`, which Orbax saves and restores as a checkpointable. The
      state counts batches: it may be restored with any number of threads, and on any host of any number of
      hosts.
    """
    if batch_size < 1:
        raise UserError(f'data: batch_size is {batch_size}; it must be at least 1')
    rows = range(batch_size) if rows is None else rows
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise UserError(f'data: rows {list(rows)} are not among the {batch_size} of a batch')
    source = _as_source(config_data)
    # Rows are taken after the draws, which belong to positions in the global order.
    examples = _in_order(source, seed, batch_size).random_map(source.record)
    return iter(
        _Rows(examples, rows, batch_size)
        .batch(len(rows), drop_remainder=True)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads)
            )
        )
    )


class _Rows(grain.MapDataset):
    """Of each `batch_size` examples, those at `rows`."""

    def __init__(self, parent: grain.MapDataset, rows: Sequence[int], batch_size: int):
        super().__init__(parent)
        self._examples, self._rows, self._batch_size = parent, tuple(rows), batch_size

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[row]]


def _in_order(source: Source, seed: int, batch_size: int) -> grain.MapDataset:
    """Indices in the endless global order; `batch_size` is the global one."""
    if not getattr(source, 'buckets', ()):
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    plan = _plan(source, batch_size, seed)
    LOG.info('%s', plan.describe())
    return grain.MapDataset.source(plan).seed(seed)


@functools.lru_cache(maxsize=1)
def _plan(source: Source, batch_size: int, seed: int) -> BucketPlan:
    # A run asks for its own twice: to read, and to know what is to come.
    return BucketPlan(source, batch=batch_size, seed=seed)


def sizes_to_come(
    source: Source, *, batch_size: int, seed: int, begin: int = 0
) -> list[tuple[int, ...]]:
    """Of a source with buckets, the sizes of batches as they first come after `begin` of them; else none."""
    if not getattr(source, 'buckets', ()):
        return []
    return _plan(source, batch_size, seed).order(begin)


def held_out_batch(config_data: Mapping | Source, n: int) -> Batch:
    """The first `n` held-out records, the same every time; files take turns.

    A source is read as it is, whatever its split; a config is read with `split='held_out'`.
    """
    source = _as_source(config_data, split='held_out')
    return next(held_out_batches(source, 1, n)())


def held_out_batches(source: Source, count: int, n: int) -> Callable[[], Iterator[Batch]]:
    """A function that reads the first `count` batches of `n` records each, the same every time."""
    if count * n > len(source):
        raise UserError(f'data: {count * n} held-out records wanted, there are {len(source)}')

    def read() -> Iterator[Batch]:
        for batch in range(count):
            records = [source.record(batch * n + index, None) for index in range(n)]
            yield {key: np.stack([record[key] for record in records]) for key in records[0]}

    return read


def describe(config_data: Mapping | Source) -> str:
    """A short report for start-up: the source's name, files, windows and seconds, and what was skipped."""
    return _as_source(config_data).describe()


def identity(config_data: Mapping | Source) -> str:
    """What all hosts must have alike, so that they train on one order: a digest of the list of examples."""
    return identities.identity(_as_source(config_data))


def _as_source(config_data: Mapping | Source, split: str | None = None) -> Source:
    # A ConfigDict is not registered as a Mapping; a source is what has records.
    if hasattr(config_data, 'record') and callable(config_data.record):
        return config_data
    return make_source(config_data, split=split)
