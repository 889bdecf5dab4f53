"""Pickled weights, read without running what a pickle may hold: a pickle is a program.

A reader knows the few names that arrays are made of, in words of its own, and refuses all others. Nothing
of the libraries that a file names is imported or called.
"""

import collections
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop.tensors import ByteRanges, Lazy

PyTree = Any

_STORAGES = {
    'DoubleStorage': np.float64,
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': jnp.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
# Lightning keeps what its callbacks know by their classes (Stable Diffusion 1.4 and 1.5): here by a word,
# which nothing can be made or called of.
_CHECKPOINT = 'ModelCheckpoint'
_CLASSES = (
    f'pytorch_lightning.callbacks.model_checkpoint.{_CHECKPOINT}',
    f'pytorch_lightning.callbacks.pt_callbacks.{_CHECKPOINT}',
    f'lightning.pytorch.callbacks.model_checkpoint.{_CHECKPOINT}',
)
# What opens a file of torch.save before version 1.6, and the version of its layout.
_MAGIC, _LAYOUT = 0x1950A86A20F9469CFC6C, 1001
# What a damaged file, or one that is none of ours, makes the readers raise.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
)


class Reader(pickle.Unpickler):
    """An unpickler that knows nothing but what `known` maps from 'module.name'."""

    def __init__(self, file: BinaryIO, path: str, known: Mapping[str, Any]):
        super().__init__(file)
        self._path, self._known = path, known

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name that the file holds."""
        full = f'{module}.{name}'
        if full not in self._known:
            raise UserError(
                f'{self._path} holds {full}, which is not an array and may be code: it was not run; '
                'convert the weights to .safetensors where you trust them'
            )
        return self._known[full]


def open_file(path: str | pathlib.Path, read: Callable[[BinaryIO, str], PyTree]) -> PyTree:
    """`read(file, path)`, whose failures are UserErrors that name the file.

    Raises:
      UserError: the file is missing, damaged, or holds something else than arrays.
    """
    try:
        with pathlib.Path(path).open('rb') as file:
            return read(file, str(path))
    except FileNotFoundError as error:
        raise UserError(f'there is no file of weights {path}') from error
    except UserError:
        raise
    except _DAMAGED as error:
        said = str(error).replace('\n', ' ') or type(error).__name__
        raise UserError(
            f'{path} is not a whole file of weights ({said}); download it again'
        ) from error


def read(path: str | pathlib.Path) -> PyTree:
    """What torch.save wrote, in the layouts of before and since version 1.6: tensors as numpy arrays.

    A state dict gives a dict of arrays; a training checkpoint gives nested dicts, lists and numbers.

    Raises:
      UserError: the file is missing or damaged, or holds something else than tensors in plain containers.
    """
    return open_file(path, lambda file, path: _arrays(_read(file, path)))


def scan(path: str | pathlib.Path) -> PyTree:
    """`read`, with a Lazy in place of each tensor: nothing but the pickle is read yet."""
    return open_file(path, _read)


def _arrays(tree: PyTree) -> PyTree:
    if isinstance(tree, Lazy):
        return tree.read()
    if isinstance(tree, dict):
        return {key: _arrays(value) for key, value in tree.items()}
    return type(tree)(map(_arrays, tree)) if type(tree) in (list, tuple) else tree


def _read(file: BinaryIO, path: str) -> PyTree:
    zipped = zipfile.is_zipfile(file)
    file.seek(0)
    return _read_zip(file, path) if zipped else _read_old(file, path)


class _Storage:
    """A flat array in a file, which begins at the byte `offset`."""

    def __init__(self, bytes_: ByteRanges, offset: int, elements: int, dtype: np.dtype):
        self.bytes, self.offset, self.elements, self.dtype = bytes_, offset, elements, dtype

    def check(self) -> None:
        """Raises a ValueError if it does not lie within its file."""
        if self.elements < 0 or self.offset + self.elements * self.dtype.itemsize > self.bytes.size:
            raise ValueError(f'a storage of {self.elements} elements is cut short')

    def view(self, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Lazy:
        """A tensor in it, by the place of its first element and its strides in elements."""
        empty = 0 in shape
        steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        count = 0 if empty else sum(steps) + 1
        if min([start, *shape, *steps, *strides]) < 0 or start + count > self.elements:
            raise ValueError(f'a tensor of {shape} does not lie within its storage')
        size = self.dtype.itemsize

        def read() -> np.ndarray:
            self.check()
            flat = self.bytes.read(self.offset + start * size, count * size).view(self.dtype)
            return np.ndarray(shape, self.dtype, flat, 0, [s * size for s in strides])

        return Lazy(tuple(shape), self.dtype, read)


class _Tensors(Reader):
    """A reader that gets a storage from `find(key, elements, dtype)`."""

    def __init__(self, file: BinaryIO, path: str, find: Callable[[str, int, np.dtype], _Storage]):
        # Methods: unlike a function's, their defaults are not a pickle's to set.
        known = {
            'collections.OrderedDict': collections.OrderedDict,
            'torch._utils._rebuild_tensor_v2': self._tensor,
            'torch._utils._rebuild_parameter': self._parameter,
            'torch.Size': self._size,
            **{f'torch.{name}': name for name in _STORAGES},
            **dict.fromkeys(_CLASSES, _CHECKPOINT),
        }
        super().__init__(file, path, known)
        self._find, self._storages = find, {}

    def persistent_load(self, pid: tuple) -> _Storage:
        """A storage. The file calls it ('storage', class, key, device, elements, ...)."""
        kind, storage, key, _, elements = pid[:5]
        if kind != 'storage' or (len(pid) > 5 and pid[5] is not None):
            raise ValueError(f'a storage of an unknown kind, {pid!r}')
        if (key, storage) not in self._storages:
            found = self._find(key, elements, np.dtype(_STORAGES[storage]))
            self._storages[key, storage] = found
        return self._storages[key, storage]

    def _tensor(self, storage, offset, shape, strides, *rest) -> Lazy:
        return storage.view(offset, tuple(shape), tuple(strides))

    def _parameter(self, data, *rest) -> Lazy:
        return data

    def _size(self, sizes) -> tuple:
        return tuple(sizes)


def _read_zip(file: BinaryIO, path: str) -> PyTree:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name == 'data.pkl' or name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise ValueError('a zip file without data.pkl')
        folder = pickles[0].removesuffix('data.pkl')
        if f'{folder}byteorder' in names and archive.read(f'{folder}byteorder') != b'little':
            raise ValueError('numbers with the highest byte first')
        bytes_ = ByteRanges(path)

        def find(key: str, elements: int, dtype: np.dtype) -> _Storage:
            info = archive.getinfo(f'{folder}data/{key}')
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f'the storage {key} is compressed, which torch.save never does')
            if elements * dtype.itemsize > info.file_size:
                raise ValueError(f'the storage {key} is cut short')
            # A member is a header of 30 bytes, its name, more of its header, and what is in it.
            head = bytes_.read(info.header_offset, 30)
            lengths = head[26:30].view('<u2')
            offset = info.header_offset + 30 + int(lengths.sum())
            storage = _Storage(bytes_, offset, elements, dtype)
            storage.check()
            return storage

        with archive.open(pickles[0]) as data:
            return _Tensors(data, path, find).load()


def _read_old(file: BinaryIO, path: str) -> PyTree:
    # Five pickles, then the storages one after the other: a count of elements and the elements.
    head = [Reader(file, path, {}).load() for _ in range(3)]
    if head[:2] != [_MAGIC, _LAYOUT] or not head[2]['little_endian']:
        raise ValueError('neither a zip file nor one of old, with the lowest byte first')
    storages: dict[str, _Storage] = {}
    bytes_ = ByteRanges(path)

    def find(key: str, elements: int, dtype: np.dtype) -> _Storage:
        if key in storages:
            raise ValueError(f'a storage {key} of two kinds')
        storages[key] = _Storage(bytes_, 0, elements, dtype)
        storages[key].check()
        return storages[key]

    tree = _Tensors(file, path, find).load()
    keys = Reader(file, path, {}).load()
    if sorted(keys) != sorted(storages):
        raise ValueError('storages are missing')
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), 'little') != storage.elements:
            raise ValueError(f'the storage {key} is cut short')
        storage.offset = file.tell()
        storage.check()
        file.seek(storage.elements * storage.dtype.itemsize, 1)
    return tree
