"""Records of arrays as bytes, for files of records: tf.train.Examples with each array's kind and shape."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sgm_jax.data import tf_example

# Beside numpy's own.
_KINDS = {'bfloat16': ml_dtypes.bfloat16}


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name, and words as arrays of strings without a shape."""
    features = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.kind == 'U':
            features[name], kind = str(array), 'str'
        else:
            features[name], kind = np.ascontiguousarray(array).tobytes(), array.dtype.name
        features[f'{name}:kind'] = kind
        features[f'{name}:shape'] = np.array(array.shape, np.int64)
    return tf_example.serialize(features)


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """What `pack` packed. Raises ValueError for anything else."""
    features = tf_example.parse(data)
    found = {}
    for name, value in features.items():
        if f'{name}:kind' not in features:
            continue
        kind = features[f'{name}:kind'][0].decode()
        if kind == 'str':
            found[name] = np.str_(value[0].decode())
            continue
        shape = tuple(int(n) for n in features[f'{name}:shape'])
        array = np.frombuffer(value[0], _KINDS.get(kind, kind)).reshape(shape)
        found[name] = array[()] if not shape else array
    return found
