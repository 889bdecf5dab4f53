"""In what precision frozen parts are held."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.platforms import target
from sgm_jax.training.frozen import hold
from sgm_jax.training.setup import Setup

PARTS = {
    'conditioner': {'0': {'visual': np.ones((2, 3), np.float32)}, 'ids': np.arange(3)},
    '3': {'encoder': {'conv': np.ones(2, np.float32)}},
    'first_stage': {'decoder': np.full(2, 1 / 3, np.float32)},
    'perceptual': {'lin': jnp.full(2, 1 / 3)},
    'autoencoder': {'logvar': np.float32(0.5)},
}


def dtypes(tree) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): x.dtype.name
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_a_first_stage_has_a_dtype_of_its_own():
    held = hold(PARTS, dtype='bfloat16', first_stage_dtype='float32')
    assert dtypes(held) == {
        'conditioner.0.visual': 'bfloat16',
        'conditioner.ids': PARTS['conditioner']['ids'].dtype.name,
        '3.encoder.conv': 'float32',
        'first_stage.decoder': 'float32',
        'perceptual.lin': 'float32',
        'autoencoder.logvar': 'float32',
    }
    assert held['first_stage']['decoder'] is PARTS['first_stage']['decoder']


def test_the_other_way_round():
    held = hold(PARTS, dtype='float32', first_stage_dtype='bfloat16')
    assert held['conditioner'] == PARTS['conditioner']
    small = dtypes({k: v for k, v in held.items() if k != 'conditioner'})
    assert set(small.values()) == {'bfloat16'}
    np.testing.assert_allclose(held['perceptual']['lin'].astype(np.float32), 1 / 3, rtol=2**-8)


@pytest.mark.parametrize(('platform', 'wanted'), [('cpu', 'float32'), ('tpu', 'bfloat16')])
def test_auto_is_by_what_computes(platform, wanted):
    with target(platform):
        held = hold(PARTS, dtype='auto', first_stage_dtype='float32')
    assert held['conditioner']['0']['visual'].dtype == jnp.dtype(wanted)
    assert held['first_stage']['decoder'].dtype == np.float32


# What is first stages' in each; SVD's second embedder encodes a frame with one.
FIRST_STAGES = {'svd': ('first_stage', '3.encoder'), 'sdxl_base': ('first_stage',)}


@pytest.mark.parametrize('name', list(FIRST_STAGES))
def test_published_models_are_held_in_half_but_for_their_first_stages(name):
    shapes = build(load_config(f'configs/{name}.py')).frozen_shapes()
    halved = functools.partial(hold, dtype='bfloat16', first_stage_dtype='float32')
    found = dtypes(jax.eval_shape(halved, shapes))
    own = [f'conditioner.embedders.{x}' if x[0].isdigit() else x for x in FIRST_STAGES[name]]
    single = {path for path, dtype in found.items() if dtype == 'float32'}
    assert single == {path for path in found if path.startswith(tuple(own))}
    assert {found[path] for path in found.keys() - single} <= {'bfloat16', 'int32'}
    assert len(found) - len(single) > 300


def test_a_run_holds_them_so():
    config = tiny.config(frozen_dtype='bfloat16')
    setup = Setup.from_config(config)
    frozen = setup.frozen(jax.random.key(0))
    assert set(dtypes(frozen).values()) <= {'bfloat16', 'int32', 'uint32'}
