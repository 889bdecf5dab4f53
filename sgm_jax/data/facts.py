"""What was found out about a store's examples by looking into each: numbers, kept in the cache folder."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np

from sgm_jax.data import cached
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.stores import Store

LOG = logging.getLogger(__name__)

# A long look is kept as it goes: one that is interrupted goes on from there.
_AT_ONCE = 8192


def facts(
    kind: str,
    store: Store,
    path: str,
    look: Callable[[int], Sequence[float] | DamagedError],
    *,
    columns: int,
    dtype: type = np.int32,
    threads: int = 8,
    worth_keeping: int,
) -> tuple[np.ndarray, dict[int, DamagedError]]:
    """What `look` says of each example, (n, columns); and what is wrong with those that have zeros.

    Args:
      kind: what is looked for: the folder of the cache.
      store: the examples. Those whose stamps changed since are looked at again.
      path: where it is; the cache is kept by it.
      look: from an example's number to its row, whose first number is not 0.
      columns: of a row.
      dtype: of the rows.
      threads: that look.
      worth_keeping: fewer examples are looked at anew as fast as a cache is read.
    """
    stamps = np.array([_hashed(store.stamp(index)) for index in range(len(store))], np.uint64)
    rows = np.zeros((len(store), columns), dtype)
    kept = cached.load_arrays(kind, str(path))
    if len(kept.get('rows', ())):
        order = np.argsort(kept['stamps'])
        places = np.searchsorted(kept['stamps'], stamps, sorter=order).clip(max=len(order) - 1)
        found = order[places]
        same = kept['stamps'][found] == stamps
        rows[same] = kept['rows'][found[same]]
    missing = np.flatnonzero(rows[:, 0] == 0)
    wrong: dict[int, DamagedError] = {}
    with futures.ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(missing), _AT_ONCE):
            part = missing[begin : begin + _AT_ONCE]
            for index, found in zip(part.tolist(), pool.map(look, part.tolist()), strict=True):
                if isinstance(found, DamagedError):
                    wrong[index] = found
                else:
                    rows[index] = found
            if len(missing) > _AT_ONCE:
                LOG.info('%s: looked at %d of %d', path, begin + len(part), len(missing))
            if len(missing) > len(wrong) and len(store) >= worth_keeping:
                cached.store_arrays(kind, str(path), stamps=stamps, rows=rows)
    return rows, wrong


def _hashed(stamp: str) -> int:
    # A file's name may be no text.
    data = stamp.encode('utf-8', 'surrogateescape')
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little')
