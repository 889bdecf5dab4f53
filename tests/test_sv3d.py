"""Stable Video 3D and every decoder: named as in their files, sampled as published, told its cameras."""

import golden
import jax
import numpy as np
import pytest

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop import to_sgm
from sgm_jax.interop.families import family_of
from sgm_jax.sampling.load import LoadedModel

FILES = {
    'sv3d_u': 'sv3d.py:u',
    'sv3d_p': 'sv3d.py:p',
    'svd_image_decoder': 'svd.py:image_decoder',
}


@pytest.mark.parametrize('name', FILES)
def test_names_and_shapes_are_the_files(name):
    published = golden.manifest(name)
    engine = build(load_config(f'configs/{FILES[name]}'))
    ours = {k: list(x.shape) for k, x in to_sgm(engine.structure.shape).items()}
    assert ours == published
    assert family_of(published, published.get).config == FILES[name]


def test_sampling_is_as_published():
    engine = build(load_config('configs/sv3d.py:p'))
    settings = engine.sampling
    assert (engine.task.num_frames, settings.steps, settings.cond_aug) == (21, 50, 1e-5)
    scales = settings.guider.scales()
    assert (scales[0], scales[10], scales[20]) == (1.0, 2.5, 1.0)
    xt = build(load_config('configs/svd.py:xt_1_1'))
    assert (xt.task.num_frames, xt.sampling.guider.min_scale) == (25, 1.5)


def test_the_conditioners_encoder_stands_in():
    engine = build(load_config('configs/sv3d.py:u'))
    params, frozen = jax.eval_shape(engine.structure.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), 'float32')
    run = lambda p, f, x: engine.structure.merge(p, f).encode(x)
    assert jax.eval_shape(run, params, frozen, images).shape == (2, 8, 8, 4)


@pytest.fixture(scope='module')
def model() -> LoadedModel:
    config = load_config('configs/sv3d.py:tiny_p')
    config.model.network.update(channel_mult=(1, 1), attention_resolutions=(2,))
    config.model.task.num_frames = config.data.num_frames = 3
    config.sample.update(steps=1, height=16, width=16)
    engine = build(config)
    params, frozen = jax.jit(engine.structure.init)(jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.05 * np.sin(np.arange(x.size)).reshape(x.shape), params)
    return LoadedModel(engine=engine, params=moved, frozen=frozen)


def test_an_orbit_follows_what_it_is_told(model):
    picture = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    views = model.sample(image=list(picture), azimuths=[90, 180, 360])
    assert views.shape == (2, 3, 16, 16, 3)
    np.testing.assert_array_equal(views[:, -1], picture)
    for other in (dict(azimuths=[200, 300, 360]), dict(azimuths=[90, 180, 360], elevations=60)):
        assert (model.sample(image=list(picture), **other) != views).any()


@pytest.mark.parametrize(
    ('told', 'words'),
    [
        (dict(elevations=[1, 2]), '2 elevations for 3 frames'),
        (dict(elevations=95), 'elevation of frame 1 is 95'),
        (dict(azimuths=[90, 30, 180]), 'azimuths are not in order'),
        (dict(orbit='static', azimuths=[1, 2, 3]), '--orbit goes without --azimuths'),
        (dict(orbit='spiral'), "orbit is 'spiral'"),
        (dict(decode_overlap=-1), 'decode_overlap is -1'),
    ],
)
def test_impossible_wishes_are_named(model, told, words):
    with pytest.raises(UserError, match=words) as error:
        model.sample(image=np.zeros((16, 16, 3), np.uint8), **told)
    assert '\n' not in str(error.value)
