"""From a source to an endless, shuffled, sharded, resumable stream of batches, with Grain.

Which records are in batch i, and every number drawn for them, is a function of (seed, i) alone: not of the
number of threads, and not of the number of hosts as long as the global batch stays the same. For the draws
follow the position in the global order, and hosts take turns in it: host s of n has positions s, s + n, ...
"""

from collections.abc import Mapping

import grain
import numpy as np

from sgm_jax.config import build, plain
from sgm_jax.data.sources import SOURCES, Source
from sgm_jax.errors import UserError

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
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """An endless iterator of batches, reshuffled every epoch.

    Args:
      config_data: `config.data`, or a source made from it by `make_source`.
      batch_size: of this host.
      seed: of the order and of everything drawn.
      shard_index: this host's number, below `shard_count`.
      shard_count: how many hosts share the data.
      num_threads: that read batches ahead; 0 reads in the caller's thread.
      prefetch: batches kept ready.

    Returns:
      An iterator with `get_state` and `set_state`, which Orbax saves and restores as a checkpointable. The
      state counts batches: it may be restored with any number of threads, and with another number of hosts
      when the global batch is the same.
    """
    if batch_size < 1:
        raise UserError(f'data: batch_size per host is {batch_size}; it must be at least 1')
    if not 0 <= shard_index < shard_count:
        raise UserError(f'data: shard_index {shard_index} is not one of {shard_count} shards')
    source = _as_source(config_data)
    return iter(
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        # Before the slice: draws belong to positions in the global order.
        .random_map(source.record)
        .slice(slice(shard_index, None, shard_count))
        .batch(batch_size, drop_remainder=True)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads)
            )
        )
    )


def held_out_batch(config_data: Mapping | Source, n: int) -> Batch:
    """The first `n` held-out records, the same every time; files take turns.

    A source is read as it is, whatever its split; a config is read with `split='held_out'`.
    """
    source = _as_source(config_data, split='held_out')
    if n > len(source):
        raise UserError(f'data: {n} held-out records wanted, there are {len(source)}')
    records = [source.record(index, None) for index in range(n)]
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


def describe(config_data: Mapping | Source) -> str:
    """A short report for start-up: the source's name, files, windows and seconds, and what was skipped."""
    return _as_source(config_data).describe()


def _as_source(config_data: Mapping | Source, split: str | None = None) -> Source:
    # A ConfigDict is not registered as a Mapping; a source is what has records.
    if hasattr(config_data, 'record') and callable(config_data.record):
        return config_data
    return make_source(config_data, split=split)
