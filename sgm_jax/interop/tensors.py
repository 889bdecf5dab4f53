"""Tensors that are known by name, shape and type before they are read, one at a time."""

import math
import os
import pathlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from sgm_jax.errors import UserError

# The number types of files by the names that users know them by.
DTYPES = {
    'float32': np.dtype(np.float32),
    'float16': np.dtype(np.float16),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
}


class Lazy(NamedTuple):
    """A tensor that is read when it is called for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """What it needs in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_float(dtype: np.dtype) -> bool:
    """Whether a type is one of floats, those of ml_dtypes among them."""
    return dtype.kind == 'f' or dtype.name in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')


def held(array: np.ndarray) -> Lazy:
    """An array in memory as a Lazy."""
    array = np.asarray(array)
    return Lazy(array.shape, array.dtype, lambda: array)


class Tensors(Mapping):
    """A state dict whose arrays are read as they are asked for, and not kept.

    Args:
      lazies: each name's tensor.
      path: where they come from, for errors.
    """

    def __init__(self, lazies: Mapping[str, Lazy], path: str = ''):
        self.lazies, self.path = dict(lazies), str(path)

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], path: str = '') -> 'Tensors':
        """Any state dict as Tensors."""
        if isinstance(tensors, Tensors):
            return tensors
        return cls({name: held(array) for name, array in tensors.items()}, path)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self.lazies[name].shape

    def dtype(self, name: str) -> np.dtype:
        """A tensor's type, without reading it."""
        return self.lazies[name].dtype

    def __getitem__(self, name: str) -> np.ndarray:
        return self.lazies[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self.lazies

    def __iter__(self) -> Iterator[str]:
        return iter(self.lazies)

    def __len__(self) -> int:
        return len(self.lazies)


class ByteRanges:
    """An open file of which ranges of bytes are read, each into memory of its own.

    A mapped file would count as the process's memory, page by page, for as long as it is open.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.size = os.fstat(self._file).st_size

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` bytes from `offset`, as uint8."""
        data = np.empty(count, np.uint8)
        view, done = memoryview(data), 0
        while done < count:
            try:
                got = os.preadv(self._file, [view[done:]], offset + done)
            except OSError as error:
                raise UserError(f'{self.path} cannot be read ({error.strerror})') from error
            if not got:
                raise UserError(
                    f'{self.path} was cut short while it was read; download it again'
                ) from None
            done += got
        return data

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Lazy:
        """The tensor that lies there in C order."""
        count = math.prod(shape) * dtype.itemsize
        return Lazy(shape, dtype, lambda: self.read(offset, count).view(dtype).reshape(shape))
