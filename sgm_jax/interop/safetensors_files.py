"""The .safetensors format, one tensor at a time in both directions.

A file is the length of its header (8 bytes, lowest first), the header (JSON: names to dtype, shape and the
range of bytes after the header), and the tensors. Source: the format's description in the package
safetensors, whose own readers map the file, or hold all that is to be written.
"""

import json
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop.tensors import ByteRanges, Lazy, Tensors
from sgm_jax.interop.whole_files import whole

_DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U64': np.uint64,
    'U32': np.uint32,
    'U16': np.uint16,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
# What the format has besides: parts of a byte, scales of their own, complex numbers.
_OTHERS = ('F4', 'F6_E2M3', 'F6_E3M2', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ', 'C64')
_DTYPES = {name: np.dtype(dtype) for name, dtype in _DTYPES.items()}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # as the package has it
_ALIGNED = 8
# What a header that is none raises.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)


def read(path: str | pathlib.Path) -> Tensors:
    """All tensors of a file under the names that it has for them.

    Raises:
      UserError: the file is missing, damaged or cut short, or has numbers of a kind that is not read.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f'there is no checkpoint file {path}')
    try:
        file = ByteRanges(path)
        header, start = _header(file)
        _check_dtypes(path, header)
        return Tensors({k: _lazy(file, start, v) for k, v in header.items()}, str(path))
    except UserError:
        raise
    except _DAMAGED as error:
        said = str(error).replace('\n', ' ') or type(error).__name__
        raise UserError(
            f'{path} is not a whole .safetensors file ({said}); download it again'
        ) from error


def _header(file: ByteRanges) -> tuple[dict, int]:
    """(the tensors' entries, where the first one begins)."""
    if file.size < 8:
        raise ValueError(f'it has {file.size} bytes')
    (length,) = struct.unpack('<Q', file.read(0, 8).tobytes())
    if length > min(_LONGEST_HEADER, file.size - 8):
        raise ValueError(f'no header of {length} bytes fits into {file.size} bytes')
    header = json.loads(file.read(8, length).tobytes())
    header.pop('__metadata__', None)
    return header, 8 + length


def _check_dtypes(path: str | pathlib.Path, header: Mapping) -> None:
    for name, entry in header.items():
        if entry['dtype'] in _OTHERS:
            raise UserError(
                f'{path}: {name} is {entry["dtype"]}, which is not read here (a quantized model?); give one '
                f'with weights in {", ".join(k for k in _DTYPES if "F" in k)}'
            )


def _lazy(file: ByteRanges, start: int, entry: Mapping) -> Lazy:
    dtype, shape = _DTYPES[entry['dtype']], tuple(map(int, entry['shape']))
    begin, end = entry['data_offsets']
    size = math.prod(shape) * dtype.itemsize
    if begin < 0 or end - begin != size or min(shape, default=0) < 0:
        raise ValueError(f'{size} bytes of a tensor lie in {begin} to {end}')
    if start + end > file.size:
        raise ValueError(f'{file.size} bytes of at least {start + end}')
    return file.array(start + begin, shape, dtype)


def write(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Tensors as a file, written whole or not at all; each is read and let go before the next one.

    Raises:
      UserError: the file cannot be written.
    """
    path, lazies = pathlib.Path(path).expanduser(), Tensors.of(tensors).lazies
    # Wide types first: so all begin where their types may.
    order = sorted(lazies, key=lambda name: (-lazies[name].dtype.itemsize, name))
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name in order:
        shape, dtype, _ = lazies[name]
        end = offset + lazies[name].nbytes
        header[name] = {
            'dtype': _NAMES[dtype.newbyteorder('=')],
            'shape': list(shape),
            'data_offsets': [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % _ALIGNED)
    try:
        with whole(path) as file:
            file.write(struct.pack('<Q', len(text)))
            file.write(text)
            for name in order:
                _write_array(file, lazies[name], name)
    except OSError as error:
        raise UserError(
            f'{path} could not be written ({error.strerror or error}); free some space, or choose '
            'another place'
        ) from error


def _write_array(file: BinaryIO, lazy: Lazy, name: str) -> None:
    array = np.ascontiguousarray(lazy.read(), lazy.dtype.newbyteorder('<'))
    if array.nbytes != lazy.nbytes:
        raise ValueError(f'{name} is {array.shape}, and was said to be {lazy.shape}')
    file.write(memoryview(array.reshape(-1).view(np.uint8)))
