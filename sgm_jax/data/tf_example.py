"""tf.train.Example, the records of TensorFlow Datasets, read and written without TensorFlow.

Source: tensorflow/core/example/{example,feature}.proto, and the wire format of protocol buffers. An Example
is features (1), which are a map (1) from a name (1) to a feature (2): bytes (1), floats (2) or int64s (3),
each a list of values (1), packed or not.
"""

from collections.abc import Iterator, Mapping

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Feature = list[bytes] | np.ndarray


def parse(data: bytes) -> dict[str, Feature]:
    """A record's features by name: lists of bytes, float32 or int64 arrays.

    Raises:
      ValueError: not such a record.
    """
    found = {}
    for number, features in _fields(data):
        if number != 1:
            continue
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            if not isinstance(parts.get(1), bytes):
                raise ValueError('not a tf.train.Example: a feature without a name')
            found[parts[1].decode()] = _feature(parts.get(2, b''))
    return found


def serialize(features: Mapping[str, bytes | str | int | float | np.ndarray | list]) -> bytes:
    """The record of features; arrays of floats and of integers are flat, as the format has no shapes."""
    entries = b''
    for name, value in sorted(features.items()):
        entry = _tag(1, _text(name)) + _tag(2, _serialized(value))
        entries += _tag(1, entry)
    return _tag(1, entries)


def _feature(data: bytes) -> Feature:
    for kind, values in _fields(data):
        if kind == 1:
            return [value for number, value in _fields(values) if number == 1]
        if kind == 2:
            parts = [value for number, value in _fields(values) if number == 1]
            return np.frombuffer(b''.join(parts), '<f4')
        if kind == 3:
            return _integers(values)
    return []


def _integers(data: bytes) -> np.ndarray:
    found = []
    for number, value in _fields(data):
        if number != 1:
            continue
        if isinstance(value, int):
            found.append(value)
            continue
        place = 0
        while place < len(value):
            item, place = _varint(value, place)
            found.append(item)
    return np.array(found, np.uint64).astype(np.int64)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    if not isinstance(data, bytes):
        raise ValueError('not a tf.train.Example')
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
        elif kind in (_BYTES, _FIXED32, _FIXED64):
            size = {_FIXED32: 4, _FIXED64: 8}.get(kind)
            if size is None:
                size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
            if place > len(data):
                raise ValueError('not a tf.train.Example: it ends inside a field')
        else:
            raise ValueError(f'not a tf.train.Example: wire type {kind}')
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError('not a tf.train.Example: it ends inside a number')
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _serialized(value) -> bytes:
    if isinstance(value, (bytes, str)):
        value = [value]
    if isinstance(value, (list, tuple)) and all(isinstance(v, (bytes, str)) for v in value):
        items = [_text(v) if isinstance(v, str) else v for v in value]
        return _tag(1, b''.join(_tag(1, item) for item in items))
    array = np.asarray(value).reshape(-1)
    if array.dtype.kind == 'f':
        return _tag(2, _tag(1, array.astype('<f4').tobytes()))
    packed = b''.join(_number(int(item) & (2**64 - 1)) for item in array)
    return _tag(3, _tag(1, packed))


def _text(value: str) -> bytes:
    # Names of files may hold bytes that are no text; a feature of TFDS's kind `Text` is UTF-8.
    return value.encode('utf-8', 'backslashreplace')


def _tag(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _number(len(data)) + data


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
