"""Sharded training: the numbers of one device on every mesh, and what each device holds."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import processes
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.parallel import mesh as meshes

ROOT = pathlib.Path(__file__).resolve().parents[1]
MESHES = [
    {'data': 1},
    {'data': 2, 'fsdp': 2, 'context': 2},
    {'data': 8},
    {'fsdp': 8},
    {'data': 4, 'fsdp': 2},
]


def run(*arguments: str) -> list:
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    assert 'rematerialization' not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module', params=['svd', 'sdxl', 'autoencoder'])
def trained(request, tmp_path_factory) -> tuple[str, list, pathlib.Path]:
    """A case on all meshes: its name, what came of it, and a file of the numbers of one device."""
    kept = tmp_path_factory.mktemp('sharded') / 'one.npz'
    words = request.param, json.dumps(MESHES), '--kept', str(kept)
    return request.param, run('tests/sharded.py', *words), kept


def assert_as_on_one(found: dict) -> None:
    """Losses, parameters and their average, to 1e-5 (of the loss; of the largest parameter)."""
    assert found['devices'] == 8
    assert found['moved'] > 1e-3
    for here, there in zip(found['first_logs'], found['logs'], strict=True):
        assert here.keys() == there.keys()
        for name in {'loss', 'train/loss/total', 'train/loss/disc'} & here.keys():
            np.testing.assert_allclose(there[name], here[name], rtol=1e-5)
    for name in ('params', 'ema'):
        assert found[name] <= 1e-5 * found['largest'], name


def assert_gives_its_memory(found: dict) -> None:
    """A step writes its state where the one before it was, every byte of it."""
    assert found['aliased'] >= found['held']
    assert found['given']


@pytest.mark.slow
def test_all_meshes_train_to_the_same(trained):
    _, (one, *others), _ = trained
    assert_gives_its_memory(one)
    for found in others:
        assert_as_on_one(found)
        assert_gives_its_memory(found)
        # No more than one parameter is gathered at a time.
        gathered = found['collectives'].get('all-gather', [0])
        assert max(gathered) <= max(found['largest_parameter'], found['bytes'] // 10)
    assert others[2]['share'] < 1 / 7


@pytest.mark.slow
def test_two_processes_train_to_the_same(trained, tmp_path):
    case, _, kept = trained
    # Both processes gather each other's parts of the model.
    words = [case, json.dumps([{'fsdp': 4, 'context': 2}]), '--kept', kept]
    with processes.started(words, tmp_path, program=('tests/sharded.py',)) as both:
        assert both.wait(900) == [0, 0], both.said(0) + both.said(1)
    for index in (0, 1):
        (found,) = json.loads(both.said(index).splitlines()[-1])
        assert_as_on_one(found)


@pytest.mark.slow
def test_an_example_is_split_between_processes(tmp_path):
    kept = str(tmp_path / 'one.npz')
    run('tests/sharded.py', 'smallest', json.dumps([{'data': 1}]), '--kept', kept)
    words = ['smallest', json.dumps([{'context': 8}]), '--kept', kept]
    with processes.started(words, tmp_path, program=('tests/sharded.py',)) as both:
        assert both.wait(300) == [0, 0], both.said(0) + both.said(1)
    for index in (0, 1):
        (found,) = json.loads(both.said(index).splitlines()[-1])
        assert_as_on_one(found)


def test_the_smallest_model_on_eight_devices():
    one, many = run('tests/sharded.py', 'smallest', json.dumps([{'data': 1}, {'fsdp': 8}]))
    assert_as_on_one(many)
    assert many['share'] < one['share'] / 3
    for found in (one, many):
        assert_gives_its_memory(found)


PIXELS = """
import json, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from sgm_jax.networks import placement
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.transformer import SpatialVideoTransformer
from sgm_jax.parallel import mesh as meshes

layer = SpatialVideoTransformer(32, heads=2, dim_head=16, context_dim=8, use_linear=True,
    use_spatial_context=True, merge_strategy='learned', dtype=jnp.float32, rngs=Keys(0))
graphdef, params = nnx.split(layer)
wave = lambda x: x + 0.1 * jnp.sin(jnp.arange(float(x.size))).reshape(x.shape)
params = jax.tree.map(wave, params)
context = jax.random.normal(jax.random.key(1), (6, 3, 8))
mesh = meshes.make_mesh({'data': 2, 'context': 4})
found = []
# Rows divide by four; columns alone do.
for height, width in ((8, 3), (9, 4)):
    x = jax.random.normal(jax.random.key(2), (6, height, width, 32))
    f = lambda p, x: nnx.merge(graphdef, p)(placement.feature_map(x), context, num_frames=3)
    one = jax.jit(f)(params, x)
    def spread(p, x):
        with placement.over(mesh, batch=meshes.BATCH, context=meshes.CONTEXT):
            return placement.feature_map(f(p, x))
    many = jax.jit(spread)(params, x)
    found.append([float(jnp.abs(one - x).max()), float(jnp.abs(np.asarray(many) - one).max()),
                  str(many.sharding.spec)])
print(json.dumps(found))
"""


def test_pixels_of_a_clip_over_devices():
    rows, columns = run('-c', PIXELS)
    for moved, apart, _ in (rows, columns):
        assert moved > 0.1
        assert apart < 1e-5
    assert 'context' in rows[2]
    assert 'context' in columns[2]


@pytest.mark.parametrize('name', ['svd', 'sdxl_base'])
def test_an_eighth_of_the_state_on_each_of_eight(name):
    mesh = AbstractMesh((1, 8, 1), meshes.AXES)
    engine = build(load_config(str(ROOT / f'configs/{name}.py')))
    shapes = [x.shape for x in jax.tree.leaves(engine.structure.abstract[1])]
    rule = {shape: meshes.by_shape(shape, mesh) for shape in shapes}
    held = sum(math.prod(rule[shape].shard_shape(shape)) for shape in shapes)
    assert held < sum(map(math.prod, shapes)) / 7
    large = [shape for shape in shapes if math.prod(shape) >= meshes.MIN_SIZE]
    assert not [shape for shape in large if rule[shape].is_fully_replicated]


def test_the_model_is_split_over_context_too():
    mesh = AbstractMesh((1, 2, 4), meshes.AXES)
    spec = lambda *shape: meshes.by_shape(shape, mesh, min_size=8).spec
    assert spec(3, 64) == PartitionSpec(None, ('fsdp', 'context'))
    assert spec(3, 6) == PartitionSpec(None, 'fsdp')


def test_what_fsdp_divides_no_axis_of_is_known_with_a_size_that_does():
    # SVD's widest kernel of a size that 256 devices do not divide, and what they do.
    mesh = AbstractMesh((1, 256, 1), meshes.AXES)
    shapes = {'wide': (3, 3, 1920, 640), 'square': (1280, 1280), 'small': (320,)}
    tree = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
    tree = meshes.abstract(tree, mesh)
    assert [x.shape for x in meshes.unsplit(tree, mesh)] == [shapes['wide']]
    assert meshes.fsdp_for_all(tree, mesh) == 128
    fitting = AbstractMesh((2, 128, 1), meshes.AXES)
    assert not meshes.unsplit(meshes.abstract(tree, fitting), fitting)
    # Copies are meant to be whole.
    assert not meshes.unsplit(tree, AbstractMesh((256, 1, 1), meshes.AXES))


def test_rows_must_divide():
    mesh = AbstractMesh((1, 1, 8), meshes.AXES)
    meshes.check_rows(72, mesh)
    with pytest.raises(UserError, match=r'mesh.context is 8, .* the 36 rows .* use 4 '):
        meshes.check_rows(36, mesh)
