"""The sizes of a store's pictures, from their headers; kept in the cache folder."""

import io
from typing import BinaryIO

import numpy as np

from sgm_jax.data import places
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.facts import facts
from sgm_jax.data.folders import Folder
from sgm_jax.data.stores import Store
from sgm_jax.sampling.media import image_size

# That look at once; far away they mostly wait.
THREADS, REMOTE_THREADS = 8, 32


def picture_sizes(store: Store, path: str) -> tuple[np.ndarray, dict[int, DamagedError]]:
    """int32 (n, 2), (height, width) of each upright picture, and what is wrong with those of size (0, 0).

    Args:
      store: the pictures.
      path: where it is; the cache is kept by it. Pictures that changed since are looked at again.
    """

    def size(index: int) -> tuple[int, int] | DamagedError:
        try:
            with _opened(store, index) as file:
                return image_size(file)
        except DamagedError as error:
            return error
        except ValueError as error:
            return DamagedError(store.name(index), str(error))
        except OSError as error:
            return DamagedError(store.name(index), f'cannot be read ({error.strerror or error})')

    threads = REMOTE_THREADS if places.is_remote(path) else THREADS
    return facts('sizes', store, path, size, columns=2, threads=threads, worth_keeping=256)


def _opened(store: Store, index: int) -> BinaryIO:
    # Of a file on this machine the header alone is read. Far away a request costs more than most pictures.
    part = store.part(index) if isinstance(store, Folder) else None
    if part is not None and not places.is_remote(part.path):
        return open(part.path, 'rb')
    return io.BytesIO(store.picture(index))
