"""Caches of clips: moments of every frame, the given frame, and what the image tower makes of it."""

import jax
import numpy as np
import pytest
import tiny
from test_first_stage_files import small

from sgm_jax.data import pipeline
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop.checkpoint_files import write_model
from sgm_jax.networks.layers import Keys
from sgm_jax.tools import cache_latents

SHAPE = (tiny.FRAMES, tiny.SIZE, tiny.SIZE, 3)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The smallest SVD, on latents, with an image tower that is not trained."""
    config = tiny.config()
    image, *rest = config.model.conditioner
    config.model.conditioner = ({**image, 'is_trainable': False}, *rest)
    config.model.first_stage = small('autoencoder_kl_f8.py:tiny').model.first_stage
    config.model.network.update(in_channels=8, out_channels=4)
    path = tmp_path_factory.mktemp('clips') / 'model.safetensors'
    config.model.checkpoint = str(path)
    write_model(path, build(config).structure.build(Keys(1)))
    return config


@pytest.fixture(scope='module')
def cache(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')
    options = cache_latents.Options(output=str(folder), batch_size=4, shard_size=8)
    assert cache_latents.make(config, options) == 0
    return folder


def cached(cache, split='train'):
    return pipeline.make_source({'name': 'cached_latents', 'path': str(cache)}, split=split)


def drawn(config, index):
    """The clip that the cache was made of."""
    source = pipeline.make_source(config.data)
    return source.record(index, np.random.default_rng([int(config.seed), index]))


def test_a_record_has_all_moments_and_the_given_frame(cache, config):
    record, clip = cached(cache).record(3), drawn(config, 3)
    assert clip['jpg'].shape == SHAPE
    np.testing.assert_array_equal(record['given'], clip['jpg'][0])
    for key in ('fps_id', 'motion_bucket_id'):
        assert record[key] == clip[key]
    engine = build(config)
    frozen = engine.init_frozen(jax.random.key(0))
    stage = engine.structure.merge(engine.init(jax.random.key(0)), frozen).first_stage
    expected = stage.encode(clip['jpg'])
    assert record['moments'].shape == (tiny.FRAMES, *expected.shape[1:])
    np.testing.assert_allclose(record['moments'], expected, rtol=1e-4, atol=1e-4)
    # The frame with its noise is drawn anew each time: it is in no cache.
    assert {name for name in record if name.startswith('embedded/')} == {'embedded/0/0'}


@pytest.mark.slow
def test_the_loss_is_that_of_the_clips(cache, config):
    engine = build(config)
    engine.check(cached(cache).record(0))
    params, frozen = engine.init(jax.random.key(0)), engine.init_frozen(jax.random.key(0))
    wave = lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape).astype(np.float32)
    params = jax.tree.map(wave, params)
    stack = lambda records: {k: np.stack([r[k] for r in records]) for k in records[0]}
    clips = stack([drawn(config, index) for index in range(2)])
    latents = stack([cached(cache).record(index) for index in range(2)])
    loss = jax.jit(lambda batch: engine.loss(params, frozen, batch, jax.random.key(5))[0])
    found = [loss(engine.prepare(batch)) for batch in (clips, latents)]
    np.testing.assert_allclose(found[0], found[1], rtol=2e-4)
    # And the conditions matter to it.
    latents['given'] = -latents['given']
    assert abs(loss(engine.prepare(latents)) - found[1]) > 1e-3 * found[1]


def test_clips_of_another_length_are_refused(cache, config):
    engine = build(config).with_frames(tiny.FRAMES + 1)
    with pytest.raises(UserError, match=r'num_frames is 2 and model\.task\.num_frames is 3'):
        engine.check(cached(cache).record(0))
