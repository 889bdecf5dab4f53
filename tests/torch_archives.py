"""Files as torch.save writes them, written without torch: for tests of what reads them."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

_KINDS = {'float32': 'FloatStorage', 'float16': 'HalfStorage', 'bfloat16': 'BFloat16Storage'}


class _Storage:
    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array


class _Tensor:
    def __init__(self, key: str, array: np.ndarray):
        self.storage = _Storage(key, np.asarray(array, order='C'))

    def __reduce__(self):
        array = self.storage.array
        strides = tuple(s // array.itemsize for s in array.strides)
        view = (self.storage, 0, array.shape, strides, False, collections.OrderedDict())
        return sys.modules['torch._utils']._rebuild_tensor_v2, view


def save(path, tree: dict, monkeypatch) -> None:
    """Nested dicts of arrays and plain values as a file of torch.save's."""
    torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
    for name in _KINDS.values():
        setattr(torch, name, type(name, (), {'__module__': 'torch'}))
    rebuild = lambda *args: None
    rebuild.__module__, rebuild.__name__ = 'torch._utils', '_rebuild_tensor_v2'
    rebuild.__qualname__ = rebuild.__name__
    utils._rebuild_tensor_v2 = rebuild
    storages = []

    def tensors(node):
        if isinstance(node, dict):
            return {key: tensors(value) for key, value in node.items()}
        if not isinstance(node, np.ndarray):
            return node
        storages.append(_Tensor(str(len(storages)), node))
        return storages[-1]

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            if not isinstance(x, _Storage):
                return None
            kind = getattr(torch, _KINDS[x.array.dtype.name])
            return ('storage', kind, x.key, 'cpu', x.array.size)

    file = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'torch', torch)
        patch.setitem(sys.modules, 'torch._utils', utils)
        Pickler(file, protocol=2).dump(tensors(tree))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', file.getvalue())
        for tensor in storages:
            archive.writestr(f'archive/data/{tensor.storage.key}', tensor.storage.array.tobytes())
