"""Inputs and outputs of the PyTorch reference on small configs, kept under tests/goldens."""

import functools
import gzip
import json
import math
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'goldens'
MANIFESTS = pathlib.Path(__file__).parent / 'manifests'


def generate(name: str, shape, salt: str = '') -> np.ndarray:
    """The parameter of that name and (PyTorch) shape, the same on both sides of a comparison."""
    key = zlib.crc32((salt + name).encode())
    n = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    leaf = name.rsplit('.', 1)[-1]
    if leaf == 'num_batches_tracked':
        return np.zeros(shape, np.int64)
    if leaf == 'logit_scale':
        v = np.full(shape, 2.6592)
    elif leaf == 'running_var':
        v = 1 + 0.1 * np.abs(n)
    elif leaf == 'mix_factor' or len(shape) == 0:
        v = 0.5 * n
    elif len(shape) >= 2:
        v = n / math.sqrt(max(1, math.prod(shape[1:])))
    elif leaf == 'weight':
        v = 1 + 0.1 * n
    else:
        v = 0.1 * n
    return v.astype(np.float32)


@functools.cache
def cases() -> dict:
    with gzip.open(FOLDER / 'cases.json.gz', 'rt') as f:
        return json.load(f)


def config(case: str) -> dict:
    return cases()['cases'][case]['config']


def arrays(case: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs) of a case, by name, in PyTorch layout."""
    with np.load(FOLDER / f'{case}.npz') as npz:
        inputs = {k[3:]: npz[k] for k in npz.files if k.startswith('in.')}
        outputs = {k[4:]: npz[k] for k in npz.files if k.startswith('out.')}
    return inputs, outputs


def parameters(shapes: dict[str, list[int]], salt: str = '') -> dict[str, np.ndarray]:
    """A generated state dict for names and shapes."""
    return {
        name: generate(name, tuple(shape), cases()['salt'] + salt) for name, shape in shapes.items()
    }


def state_dict(case: str, part: str | None = None, salt: str = '') -> dict[str, np.ndarray]:
    shapes = cases()['cases'][case]['shapes']
    return parameters(shapes[part] if part else shapes, salt)


def manifest(name: str) -> dict[str, list[int]]:
    """Names and shapes of a published checkpoint."""
    with gzip.open(MANIFESTS / f'{name}.json.gz', 'rt') as f:
        return json.load(f)


def last(x: np.ndarray) -> np.ndarray:
    """Channels first to channels last."""
    return np.moveaxis(x, 1, -1)


def assert_close(got, want, tolerance: float = 2e-5) -> None:
    """Largest difference at most `tolerance` of the largest wanted value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error <= tolerance, f'relative error {error:.2e} > {tolerance:.0e}'


def quick_jit(function):
    """jax.jit that compiles in half the time and runs slower: for what is called once."""
    import jax  # PyTorch's side of a comparison has none

    options = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
    return jax.jit(function, compiler_options=options)
