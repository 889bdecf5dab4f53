"""The sizes of a store's pictures, from their headers; kept in the cache folder."""

import io

import numpy as np

from sgm_jax.data.damage import DamagedError
from sgm_jax.data.facts import facts
from sgm_jax.data.stores import Store
from sgm_jax.sampling.media import image_size


def picture_sizes(store: Store, path: str) -> tuple[np.ndarray, dict[int, DamagedError]]:
    """int32 (n, 2), (height, width) of each upright picture, and what is wrong with those of size (0, 0).

    Args:
      store: the pictures.
      path: where it is; the cache is kept by it. Pictures that changed since are looked at again.
    """

    def size(index: int) -> tuple[int, int] | DamagedError:
        try:
            return image_size(io.BytesIO(store.picture(index)))
        except DamagedError as error:
            return error
        except ValueError as error:
            return DamagedError(store.name(index), str(error))

    return facts('sizes', store, path, size, columns=2, worth_keeping=256)
