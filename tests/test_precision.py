"""What `--dtype` of sampling holds: all weights but the first stage's."""

import jax
import jax.numpy as jnp
import pytest
import smallest

import sgm_jax
from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.sampling import precision
from sgm_jax.training.workdir import open_workdir


def dtypes(tree) -> set[str]:
    return {x.dtype.name for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def test_the_first_stage_is_never_rounded():
    frozen = build(load_config('configs/svd.py'), sampling=True).frozen_shapes(training=False)
    held = jax.eval_shape(lambda tree: precision.hold(tree, 'bfloat16'), frozen)
    assert dtypes(held['first_stage']) == dtypes(frozen['first_stage']) == {'float32'}
    assert dtypes(held['conditioner']) == {'bfloat16'}
    assert jax.eval_shape(lambda tree: precision.hold(tree, None), frozen) == frozen


def test_network_and_encoders_compute_in_it():
    config = load_config('configs/sdxl_base.py')
    precision.compute_in(config, 'float16')
    assert config.model.network.dtype == 'float16'
    assert {node['dtype'] for node in config.model.conditioner if 'dtype' in node} == {'float16'}
    with pytest.raises(UserError, match="unknown dtype 'half'; choose one of: float32"):
        precision.compute_in(config, 'half')


def test_a_first_stage_keeps_its_own(tmp_path):
    config = smallest.config()
    open_workdir(tmp_path, config)
    with pytest.raises(UserError, match='a first stage is held in its own; leave --dtype out'):
        sgm_jax.load(tmp_path, dtype='bfloat16')
