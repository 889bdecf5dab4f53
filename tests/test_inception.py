"""Inception beside pytorch-fid (benchmarks/torch_inception.py), and distances between sets of features."""

import golden
import numpy as np
import pytest
from flax import nnx
from gan_case import inception_parameters, scene
from safetensors.numpy import save_file

from sgm_jax.engines.image_metrics import frechet_distance
from sgm_jax.errors import UserError
from sgm_jax.interop import to_sgm
from sgm_jax.interop.inception_files import load_inception
from sgm_jax.networks.inception import Inception
from sgm_jax.networks.layers import Keys


@pytest.fixture(scope='module')
def wanted():
    with np.load(golden.FOLDER / 'inception.npz') as npz:
        arrays = dict(npz)
    lines = (line.split(' ') for line in str(arrays.pop('names')).splitlines())
    shapes = {name: [int(n) for n in shape.split(',') if n] for name, shape in lines}
    return shapes, arrays


def test_beside_pytorch_fid(wanted, tmp_path):
    shapes, features = wanted
    found = to_sgm(nnx.eval_shape(lambda: Inception(rngs=Keys(0))))
    counts = {name for name in shapes if name.endswith('num_batches_tracked')}
    assert {name: list(x.shape) for name, x in found.items()} == {
        name: shape for name, shape in shapes.items() if name not in counts
    }
    path = str(tmp_path / 'inception.safetensors')
    classifier = {'fc.weight': np.zeros((1008, 2048), np.float32)}
    weights = {k: np.asarray(v) for k, v in inception_parameters(shapes).items()}
    save_file({**weights, **classifier}, path)
    graphdef, state = nnx.split(load_inception(path))
    run = golden.quick_jit(lambda state, x: nnx.merge(graphdef, state)(x))
    golden.assert_close(run(state, scene(299)), features['native'])
    golden.assert_close(run(state, scene(96)), features['resized'])

    save_file(classifier, path)
    with pytest.raises(UserError, match=r'inception\.safetensors: the checkpoint does not fit'):
        load_inception(path)


def test_distance_of_known_distributions():
    # Of points at +-a on each axis the covariance is diagonal; standard deviations subtract.
    def points(deviations, mean):
        axes = np.diag(deviations) * np.sqrt((2 * len(deviations) - 1) / 2)
        return np.concatenate([axes, -axes]) + mean

    x, y = points([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]), points([2.0, 2.0, 1.0], [1.0, 0.0, -2.0])
    assert frechet_distance(x, y) == pytest.approx(1 + 4 + 1 + 0 + 4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_distance_with_the_matrix_root_of_scipy():
    import scipy.linalg

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), 0.3 + rng.standard_normal((30, 5)) @ rng.random((5, 5))
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b).real
    wanted = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(wanted)
