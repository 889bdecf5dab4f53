"""The published Stable Video Diffusion, at its full size: built without memory, and named as in its file."""

import golden
import jax
import numpy as np
import pytest

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.interop import to_sgm

PARTS = ('model.diffusion_model.', 'first_stage_model.', 'conditioner.')


@pytest.fixture(scope='module')
def engine():
    return build(load_config('configs/svd.py'))


@pytest.mark.parametrize('part', PARTS)
def test_names_and_shapes_are_the_files(engine, part):
    ours = {k: list(x.shape) for k, x in to_sgm(engine.structure.module()).items()}
    published = golden.manifest('svd')
    pick = lambda names: {k: v for k, v in names.items() if k.startswith(part)}
    assert pick(ours) == pick(published)
    assert len(pick(ours)) > 100
    # And nothing else is in either.
    assert all(name.startswith(PARTS) for name in {*ours, *published})


def test_what_is_trained_is_the_network(engine):
    params = jax.eval_shape(engine.init, jax.random.key(0))
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
    # Stable Video Diffusion's model card and papers after it: a U-Net of 1.52 billion parameters.
    assert round(count / 1e6, 1) == 1524.6
    assert set(params) == {'network'}


@pytest.mark.parametrize(('variant', 'frames'), [('', 14), ('xt', 25)])
def test_sampling_is_as_published(variant, frames):
    engine = build(load_config(f'configs/svd.py:{variant}'))
    assert engine.task.num_frames == frames
    assert engine.factor == 64
    assert (engine.latent_size((576, 1024)), engine.latent_channels) == ((72, 128), 4)
    # sgm: scripts/sampling/configs/svd.yaml and svd_xt.yaml.
    guider = engine.sampling.guider
    assert (engine.sampling.steps, guider.max_scale, guider.min_scale) == {
        14: (25, 2.5, 1.0),
        25: (30, 3.0, 1.5),
    }[frames]
    assert engine.sampling.discretization.sigma_max == 700.0
    assert engine.with_frames(7).sampling.guider.scales().shape == (7,)
    tracing = jax.eval_shape(
        lambda params, frozen, batch, key: engine.loss(params, frozen, batch, key),
        *jax.eval_shape(engine.structure.init, jax.random.key(0)),
        {
            'jpg': jax.ShapeDtypeStruct((1, frames, 576, 1024, 3), 'float32'),
            'fps_id': jax.ShapeDtypeStruct((1,), 'float32'),
            'motion_bucket_id': jax.ShapeDtypeStruct((1,), 'float32'),
        },
        jax.random.key(0),
    )
    assert tracing[0].shape == ()
