"""The sizes of a store's pictures, from their headers; kept in the cache folder."""

import hashlib
import io
from concurrent import futures

import numpy as np

from sgm_jax.data import cached
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.stores import Store
from sgm_jax.sampling.media import image_size

# Fewer are looked at anew as fast as a cache is read.
_WORTH_KEEPING = 256


def picture_sizes(
    store: Store, path: str, *, threads: int = 8
) -> tuple[np.ndarray, dict[int, DamagedError]]:
    """int32 (n, 2), (height, width) of each upright picture, and what is wrong with those of size (0, 0).

    Args:
      store: the pictures.
      path: where it is; the cache is kept by it. Pictures that changed since are looked at again.
    """
    stamps = np.array([_hashed(store.stamp(index)) for index in range(len(store))], np.uint64)
    sizes = np.zeros((len(store), 2), np.int32)
    kept = cached.load_arrays('sizes', str(path))
    if len(kept.get('stamps', ())):
        order = np.argsort(kept['stamps'])
        places = np.searchsorted(kept['stamps'], stamps, sorter=order).clip(max=len(order) - 1)
        found = order[places]
        same = kept['stamps'][found] == stamps
        sizes[same] = kept['sizes'][found[same]]
    missing = np.flatnonzero(sizes[:, 0] == 0)
    wrong: dict[int, DamagedError] = {}
    with futures.ThreadPoolExecutor(threads) as pool:
        looked = pool.map(lambda index: _size(store, int(index)), missing)
        for index, size in zip(missing, looked, strict=True):
            if isinstance(size, DamagedError):
                wrong[int(index)] = size
            else:
                sizes[index] = size
    if len(missing) > len(wrong) and len(store) >= _WORTH_KEEPING:
        cached.store_arrays('sizes', str(path), stamps=stamps, sizes=sizes)
    return sizes, wrong


def _size(store: Store, index: int) -> tuple[int, int] | DamagedError:
    try:
        return image_size(io.BytesIO(store.picture(index)))
    except DamagedError as error:
        return error
    except ValueError as error:
        return DamagedError(store.name(index), str(error))


def _hashed(stamp: str) -> int:
    return int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=8).digest(), 'little')
