"""Samples over a mesh: those of one device, with a part of the model on each, and what cannot be."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_pictures
from jax.sharding import AbstractMesh, PartitionSpec
from test_sharded import run

from sgm_jax.engines.devices import Devices, over_mesh
from sgm_jax.errors import UserError
from sgm_jax.parallel import mesh as meshes
from sgm_jax.sampling.load import LoadedModel

CUBE = {'data': 2, 'fsdp': 2, 'context': 2}


def check(case: str, *sizes: dict) -> None:
    found = run('tests/spread.py', case, json.dumps(sizes))
    for mesh, there in zip(sizes, found, strict=True):
        assert there['deviation'] > 0.1
        assert there['apart'] < 1e-5 * there['most']
        split = mesh.get('fsdp', 1) * mesh.get('context', 1)
        # A little is too small to be split, or has no axis that divides.
        assert there['share'] < 1.1 / split
        assert there['workdir']


def test_pictures_over_a_mesh_are_those_of_one_device():
    check('sdxl', CUBE)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['svd', 'sdxl'])
def test_all_meshes_sample_the_same(case):
    check(case, CUBE, {'context': 2}, {'fsdp': 8}, {'context': 4}, {'data': 4, 'context': 2})


def abstract(**sizes: int) -> Devices:
    return Devices(
        mesh=AbstractMesh(tuple(sizes.get(axis, 1) for axis in meshes.AXES), meshes.AXES)
    )


def test_examples_are_split_as_far_as_they_divide():
    devices = abstract(data=2, fsdp=4)
    wanted = {8: ('data', 'fsdp'), 16: ('data', 'fsdp'), 4: ('fsdp',), 2: ('data',), 3: ()}
    assert {count: devices.axes(count) for count in wanted} == wanted


def test_rows_are_split_and_examples_not():
    devices = abstract(data=2, context=2)
    assert devices.sharding((2, 8, 6, 4)).spec == PartitionSpec(None, 'context', None, None)
    assert devices.sharding((2, 3, 9, 6, 4)).spec == PartitionSpec(*[None] * 5)
    assert devices.sharding((2, 77, 8)).spec == PartitionSpec(*[None] * 3)


@pytest.fixture(scope='module')
def model() -> LoadedModel:
    return tiny_pictures.model('sdxl_base')


def test_one_device_may_be_a_mesh(model):
    engine = over_mesh(model.engine, {'data': -1})
    spread = dataclasses.replace(model, engine=engine)
    assert spread.devices.mesh.size == 1
    told = dict(prompt='a fox', seed=3)
    np.testing.assert_array_equal(spread.sample(**told), model.sample(**told))


def test_rows_that_context_does_not_divide_are_named(model):
    spread = dataclasses.replace(
        model, engine=dataclasses.replace(model.engine, devices=abstract(context=4))
    )
    with pytest.raises(UserError, match=r'context is 4, .* the 6 rows of the latents .* use 2 '):
        spread.sample(prompt='a fox', height=6)
    with pytest.raises(UserError, match=r'mesh\.context is 4'):
        spread.encode(np.zeros((1, 6, 8, 3), np.uint8))


def test_a_refiner_lies_where_the_model_does(model):
    engine = over_mesh(model.engine, {'data': -1})
    with pytest.raises(UserError, match='other devices than the model; load both with one mesh'):
        model.sample(prompt='a fox', refiner=dataclasses.replace(model, engine=engine))


def test_meshes_that_cannot_be_are_named(model, monkeypatch):
    with pytest.raises(UserError, match='data=3, fsdp=1, context=1 does not fit 1 devices'):
        over_mesh(model.engine, {'data': 3})
    with pytest.raises(UserError, match="unknown key 'dato'; did you mean 'data'"):
        over_mesh(model.engine, {'dato': 3})
    with pytest.raises(UserError, match='a first stage has nothing to sample'):
        over_mesh(object(), {'data': -1})
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='2 processes, and one process makes samples'):
        over_mesh(model.engine, {'data': -1})


@pytest.mark.parametrize('text', ['', '2', 'data:2', 'data=two', 'data=2,', 'data=2,data=4'])
def test_what_is_no_mesh_is_named(text):
    with pytest.raises(UserError, match='give sizes by axis, as data=2,fsdp=-1'):
        meshes.parse(text)


def test_a_mesh_in_words():
    assert meshes.parse('data=2, fsdp=-1') == {'data': 2, 'fsdp': -1}
