"""Caches of what frozen encoders make: the same latents and losses, restarts, other encoders."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_pictures
from jax.sharding import AbstractMesh
from test_first_stage_files import small

from sgm_jax.data import packed, pipeline
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop.checkpoint_files import write_model
from sgm_jax.networks.layers import Keys
from sgm_jax.parallel import mesh as meshes
from sgm_jax.tools import cache_latents
from sgm_jax.tools.plan_batch import training_batch
from sgm_jax.training.loop import train


def small_config(folder, name='sdxl_base'):
    """A text-to-image model of 16x16 pixels with a first stage and frozen text encoders, in one file."""
    config = tiny_pictures.config(name)
    stage = small('autoencoder_kl_f8.py:tiny').model.first_stage
    config.model.first_stage = stage
    config.model.network.update(in_channels=4, out_channels=4)
    config.model.conditioner = tuple(
        {**node, 'is_trainable': False} for node in config.model.conditioner
    )
    config.data.update(height=16, width=16, repeat=1)
    config.sample.update(height=16, width=16)
    config.model.checkpoint = str(folder / 'model.safetensors')
    if not (folder / 'model.safetensors').is_file():
        engine = build(config)
        write_model(config.model.checkpoint, engine.structure.build(Keys(1)))
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def config(folder):
    return small_config(folder)


def make(config, output, **options):
    return cache_latents.make(config, cache_latents.Options(output=str(output), **options))


@pytest.fixture(scope='module')
def cache(config, folder):
    assert make(config, folder / 'made', batch_size=4, shard_size=4, visits=2) == 0
    return folder / 'made'


def cached(cache, split='train'):
    return pipeline.make_source({'name': 'cached_latents', 'path': str(cache)}, split=split)


def test_arrays_keep_their_kinds_and_shapes():
    import ml_dtypes

    arrays = {
        'a': np.arange(6, dtype=np.float32).reshape(2, 3),
        'b/0': np.array([[1.5]], ml_dtypes.bfloat16),
        'c': np.int32(-7),
        'd': np.str_('größer'),
        'e': np.zeros((0, 4), np.uint8),
    }
    found = packed.unpack(packed.pack(arrays))
    assert found.keys() == arrays.keys()
    for key, value in arrays.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


def test_records_are_the_moments_of_the_pictures_as_they_were_drawn(cache, config):
    source, found = pipeline.make_source(config.data), cached(cache)
    assert len(found) == 2 * len(source)
    assert '18 records' in found.describe() or str(len(found)) in found.describe()
    engine = build(config)
    frozen = engine.init_frozen(jax.random.key(0))
    stage = engine.structure.merge(engine.init(jax.random.key(0)), frozen).first_stage
    for index in (0, len(source) - 1, len(source) + 1):
        drawn = source.record(index % len(source), np.random.default_rng([int(config.seed), index]))
        record = found.record(index)
        moments = stage.encode(drawn['jpg'][None])[0]
        np.testing.assert_allclose(record['moments'], moments, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(record['crop_coords_top_left'], drawn['crop_coords_top_left'])
    assert 'txt' not in found.record(0)
    held_out = cached(cache, 'held_out').record(0)
    np.testing.assert_array_equal(
        held_out['jpg'], pipeline.make_source(config.data, split='held_out').record(0)['jpg']
    )


def test_the_loss_is_that_of_the_pictures(cache, config):
    engine = build(config)
    engine.check(cached(cache).record(0))
    params, frozen = engine.init(jax.random.key(0)), engine.init_frozen(jax.random.key(0))
    wave = lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape).astype(np.float32)
    params = jax.tree.map(wave, params)
    source = pipeline.make_source(config.data)
    stack = lambda records: {k: np.stack([r[k] for r in records]) for k in records[0]}
    indices = range(4)
    pictures = stack(
        [source.record(i, np.random.default_rng([int(config.seed), i])) for i in indices]
    )
    latents = stack([cached(cache).record(i) for i in indices])
    loss = jax.jit(lambda batch: engine.loss(params, frozen, batch, jax.random.key(5))[0])
    losses = [loss(engine.prepare(batch)) for batch in (pictures, latents)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


def test_a_step_is_planned_with_what_the_cache_has(cache, config):
    config = config.copy_and_resolve_references()
    config.unlock()
    config.data = {'name': 'cached_latents', 'path': str(cache)}
    engine, mesh = build(config), AbstractMesh((1, 1, 2), meshes.AXES)
    batch = next(pipeline.make_iterator(config.data, batch_size=config.train.batch_size, seed=0))
    shape = lambda x: (np.shape(x), str(x.dtype))
    found = training_batch(engine, config, mesh)
    assert 'moments' in found
    assert jax.tree.map(shape, found) == jax.tree.map(shape, engine.prepare(batch))
    with pytest.raises(UserError, match='rows of the latents'):
        training_batch(engine, config, AbstractMesh((1, 1, 3), meshes.AXES))
    config.data.path = str(cache / 'none')
    with pytest.raises(UserError, match='no cache of latents there'):
        training_batch(engine, config, mesh)


def test_a_run_learns_from_a_cache_and_another_model_refuses_it(cache, config, folder, tmp_path):
    config = config.copy_and_resolve_references()
    config.unlock()
    config.data = {'name': 'cached_latents', 'path': str(cache)}
    result = train(config, tmp_path / 'run')
    assert result.step == 2
    assert np.isfinite(result.scalars['loss'])
    other = tmp_path / 'other.safetensors'
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    config.model.checkpoint = str(other)
    with pytest.raises(UserError, match='the cache was made by other encoders'):
        train(config, tmp_path / 'refused')
    # The same weights under another name are the same encoders.
    other.write_bytes((folder / 'model.safetensors').read_bytes())
    build(config).check(cached(cache).record(0))


def test_a_restart_makes_what_is_missing_and_hosts_share(cache, config, folder, tmp_path, capsys):
    shards = sorted(cache.glob('train-*'))
    assert len(shards) == -(-len(cached(cache)) // 4)
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    expected = cached(cache).record(5)
    shards[1].unlink()
    with pytest.raises(UserError, match=r'not complete: 1 of \d+ files are missing \(train-00001'):
        cached(cache)
    make(config, cache, batch_size=4, shard_size=4, visits=2)
    after = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert [shard for shard in shards if after[shard] != before[shard]] == [shards[1]]
    for key, value in cached(cache).record(5).items():
        np.testing.assert_array_equal(value, expected[key])
    with pytest.raises(UserError, match='made with another shard_size, shards'):
        make(config, cache, batch_size=4, shard_size=8, visits=2)
    for host in (1, 0):
        make(config, tmp_path / 'two', batch_size=4, shard_size=4, visits=2, host=host, hosts=2)
    again = cached(tmp_path / 'two')
    np.testing.assert_array_equal(again.record(5)['moments'], expected['moments'])
    assert not list(cache.glob('.*'))


def test_what_is_not_finite_is_named(config, folder, tmp_path):
    engine = build(config)
    module = engine.structure.build(Keys(1))
    weight = module.first_stage.quant_conv.bias
    weight[...] = np.full(weight.shape, np.nan, np.float32)
    broken = config.copy_and_resolve_references()
    broken.model.checkpoint = str(tmp_path / 'broken.safetensors')
    write_model(broken.model.checkpoint, module)
    with pytest.raises(UserError, match='record 0 of the data: moments is not finite'):
        make(broken, tmp_path / 'made', batch_size=4)
    assert not list((tmp_path / 'made').glob('train*'))


def test_dropped_prompts_become_the_empty_prompt(folder, tmp_path):
    config = small_config(tmp_path)
    nodes = [dict(node) for node in config.model.conditioner]
    for node in nodes:
        if node['input_key'] == 'txt':
            node.update(legacy_ucg_value='', ucg_rate=0.5, ucg_group=None)
    # The first coin decides for both: they read the same prompt.
    nodes[1].update(legacy_ucg_value=None, ucg_rate=0.0)
    config.model.conditioner = tuple(nodes)
    make(config, tmp_path / 'made', batch_size=4)
    record = cached(tmp_path / 'made').record(0)
    assert {name for name in record if name.startswith('empty/')} == {
        name.replace('embedded', 'empty') for name in record if name.startswith('embedded/')
    }
    engine = build(config)
    frozen = engine.init_frozen(jax.random.key(0))
    conditioner = engine.structure.merge(engine.init(jax.random.key(0)), frozen).conditioner
    source = pipeline.make_source(config.data)
    stack = lambda records: {k: np.stack([r[k] for r in records]) for k in records[0]}
    pictures = stack([source.record(i, np.random.default_rng([0, i])) for i in range(4)])
    latents = stack([cached(tmp_path / 'made').record(i) for i in range(4)])
    key = jax.random.key(11)
    wanted, found = (
        conditioner(
            {k: v for k, v in engine.prepare(batch).items() if k not in ('jpg', 'moments')},
            key=key,
        )
        for batch in (pictures, latents)
    )
    for kind in wanted:
        np.testing.assert_allclose(found[kind], wanted[kind], rtol=1e-4, atol=1e-4)
    # Some were dropped and some were not.
    embedded, empty = latents['embedded/0/0'], latents['empty/0/0']
    width = embedded.shape[-1]
    told = np.asarray(found['crossattn'][..., :width])
    far = lambda i, x: np.abs(told[i] - x[i]).max()
    dropped = [bool(far(i, empty) < far(i, embedded)) for i in range(4)]
    assert 0 < sum(dropped) < 4


# A process that may write no more than 4 kB to a file, as on a disk that is nearly full.
FULL = """
import pathlib, resource, sys
import numpy as np
from sgm_jax.errors import UserError
from sgm_jax.tools import cache_latents
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
noise = np.random.default_rng(0).normal(size=(8, 100_000))
try:
    made = ({'moments': one} for one in noise)
    cache_latents._write(pathlib.Path(sys.argv[1]), 'train', 0, 1, made)
except UserError as error:
    print(error)
"""


def test_a_place_without_room_is_a_line(config, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match=r'deep: cannot be written \(Not a directory\); free some'):
        make(config, tmp_path / 'file' / 'deep')
    done = subprocess.run(
        [sys.executable, '-c', FULL, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.match(rf'{tmp_path}/.*: cannot be written \(.*\); free some space', done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ['file']

    def broken():
        yield {'moments': np.zeros(3)}
        raise RuntimeError('the encoder broke')

    # What is no matter of the place is not said to be one.
    with pytest.raises(RuntimeError, match='the encoder broke'):
        cache_latents._write(tmp_path, 'train', 0, 1, broken())
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_models_without_anything_to_keep_are_refused(tmp_path):
    with pytest.raises(UserError, match='works on pixels'):
        make(tiny_pictures.config('sdxl_base'), tmp_path / 'x')
    with pytest.raises(UserError, match='no cache of latents there; make one with'):
        cached(tmp_path)
