"""Meshes and shardings; and that eight devices train to the numbers of one."""

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sgm_jax.config import load_config
from sgm_jax.errors import UserError
from sgm_jax.parallel import compiler
from sgm_jax.parallel import mesh as meshes
from sgm_jax.platforms import target

ROOT = pathlib.Path(__file__).resolve().parents[1]


class FakeMesh:
    """The shape of a mesh, without its devices."""

    def __init__(self, **shape):
        self.shape, self.size = shape, int(np.prod(list(shape.values())))


@pytest.mark.parametrize(
    ('sizes', 'words'),
    [
        ({'data': 3}, 'data=3, fsdp=1, context=1 does not fit 1 devices'),
        ({'data': -1, 'fsdp': -1}, 'one of which may be -1'),
        ({'data': 0}, 'give positive sizes'),
        ({'dat': 1}, "unknown key 'dat'; did you mean 'data'"),
    ],
)
def test_impossible_meshes_are_named(sizes, words):
    with pytest.raises(UserError, match=words):
        meshes.make_mesh(sizes, jax.devices()[:1])


@dataclasses.dataclass(eq=False)
class FakeTpu:
    """What a mesh asks of a device."""

    device_kind: str
    coords: tuple[int, ...]
    slice_index: int
    platform: str = 'tpu'
    core_on_chip: int = 0
    process_index: int = 0


def fake_tpus(kind, shape, slices=1):
    places = itertools.product(range(slices), *(range(size) for size in shape))
    return [FakeTpu(kind, (*at, *[0] * (3 - len(at))), index) for index, *at in places]


@pytest.mark.parametrize(
    ('kind', 'shape', 'sizes'),
    [
        ('TPU v5p', (4, 4, 4), {'data': 2, 'fsdp': -1}),
        ('TPU v5p', (4, 4, 4), {'fsdp': -1, 'context': 2}),
        ('TPU v6 lite', (4, 4), {'data': 2, 'fsdp': -1}),
        ('TPU v6 lite', (16, 16), {'data': 4, 'fsdp': 64}),
        ('TPU v5 lite', (16, 16), {'data': 4, 'fsdp': 64}),
    ],
)
def test_meshes_need_not_follow_the_axes_of_a_slice(kind, shape, sizes):
    devices = fake_tpus(kind, shape)
    mesh = meshes.make_mesh(sizes, devices)
    assert mesh.size == len(set(mesh.devices.flat)) == len(devices)
    assert {name: mesh.shape[name] for name, size in sizes.items() if size > 0} == {
        name: size for name, size in sizes.items() if size > 0
    }
    # Along the innermost axis that has several, most neighbours have a wire between them.
    line = np.moveaxis(mesh.devices, 2 if mesh.shape['context'] > 1 else 1, -1)
    steps = [
        sum(
            min(abs(a - b), n - abs(a - b))
            for a, b, n in zip(x.coords, y.coords, (*shape, 1), strict=False)
        )
        for x, y in zip(
            line.reshape(-1, line.shape[-1])[0], line.reshape(-1, line.shape[-1])[0][1:]
        )
    ]
    assert np.mean(np.array(steps) == 1) >= 0.5


def test_slices_have_whole_copies():
    devices = fake_tpus('TPU v5p', (2, 2, 2), slices=2)
    mesh = meshes.make_mesh({'data': 4, 'fsdp': -1}, devices)
    assert [{x.slice_index for x in row.flat} for row in mesh.devices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match=r'fsdp=-1.* on 2 slices.*give data a multiple of 2'):
        meshes.make_mesh({'fsdp': -1}, devices)


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem
)
def test_every_axis_has_a_flag(path):
    assert set(load_config(str(path)).mesh) == set(meshes.AXES)


def test_batches_must_divide():
    meshes.check_batch(16, FakeMesh(data=2, fsdp=4, context=1))
    with pytest.raises(UserError, match='batch_size is 12, which 8 devices do not divide; use 16'):
        meshes.check_batch(12, FakeMesh(data=2, fsdp=4, context=1))


RULE = """
import sys, json
sys.path[:0] = ['tests', '.']
import jax, numpy as np, tiny
from sgm_jax.parallel import mesh as meshes
from sgm_jax.parallel import compiler
from sgm_jax.training.loop import train
from sgm_jax.training.setup import Setup

# Compiled quickly, for little is run.
compiler.OPTIONS['cpu'] = dict(compiler.OPTIONS['cpu'], xla_backend_optimization_level=0,
                               xla_llvm_disable_expensive_passes=True)
sizes = json.loads(sys.argv[1])
mesh = meshes.make_mesh(sizes)
spec = lambda *shape: str(meshes.by_shape(shape, mesh, min_size=64).spec)
config = tiny.config(batch_size=8, steps=2, log_every=2)
config.mesh = sizes
state = Setup.from_config(config).wanted
held = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.params))
scalars = train(config, sys.argv[2]).scalars
print(json.dumps(dict(
    devices=mesh.size,
    specs=[spec(3, 3, 16, 32), spec(3, 5), spec(7, 9, 11), spec(512)],
    share=float(held) / sum(np.prod(x.shape) for x in jax.tree.leaves(state.params)),
    loss=scalars['loss'],
    grad_norm=scalars['grad_norm'],
)))
"""


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
    found = {}
    for name, count, sizes in (
        ('one', 1, {'data': 1}),
        ('both', 8, {'data': 2, 'fsdp': -1}),
    ):
        env = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}',
        }
        done = subprocess.run(
            [sys.executable, '-c', RULE, json.dumps(sizes), str(tmp_path / name)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    one, both = found['one'], found['both']
    assert (one['devices'], both['devices']) == (1, 8)
    for key in ('loss', 'grad_norm'):
        np.testing.assert_allclose(both[key], one[key], rtol=1e-5)
    # The largest axis that four divides; none if the array is small or nothing divides.
    axis = PartitionSpec(None, None, None, 'fsdp')
    assert both['specs'] == [
        str(axis),
        str(PartitionSpec(None, None)),
        str(PartitionSpec(None, None, None)),
        str(PartitionSpec('fsdp')),
    ]
    assert one['share'] == 1.0


def test_a_chip_and_a_training_step_have_options_of_their_own(monkeypatch):
    """What jax.jit is given; that compilers take it is what plans of TPUs test."""
    given = []
    monkeypatch.setattr(
        jax, 'jit', lambda *_, compiler_options, **__: given.append(compiler_options)
    )
    for kind in ('v5e', 'v6e'):
        for training in (False, True):
            with target('tpu', kind):
                compiler.jit(abs, training=training)
    assert [x['xla_tpu_scoped_vmem_limit_kib'] for x in given] == [8192, 12288, 16384, 16384]
    with target('gpu', 'H100'):
        compiler.jit(abs, training=True)
    assert given[-1] is None
