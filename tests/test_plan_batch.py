"""The shapes of batches that a plan is made with, of configs that have several."""

import pytest
from jax.sharding import AbstractMesh

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.parallel import mesh as meshes
from sgm_jax.tools.plan_batch import sampling_batch, training_batch

ONE = AbstractMesh((1, 1, 1), meshes.AXES)


@pytest.fixture(scope='module')
def clips():
    """A config of clips of two sizes, and its engine."""
    config = load_config('configs/svd.py:tiny')
    config.data.buckets = ((4, 32, 64), (6, 48, 48))
    return config, build(config)


def test_a_step_is_planned_with_the_largest_bucket(clips):
    config, engine = clips
    count = config.train.batch_size
    assert training_batch(engine, config, ONE)['jpg'].shape == (count, 6, 48, 48, 3)
    # A sample has the config's own size.
    assert sampling_batch(engine, config, 1)['jpg'].shape == (1, 8, 64, 64, 3)


def test_context_must_divide_the_rows_of_each_bucket(clips):
    config, engine = clips
    with pytest.raises(UserError, match=r'mesh.context is 8, which .* the 12 rows'):
        training_batch(engine, config, AbstractMesh((1, 1, 8), meshes.AXES))


def test_buckets_by_name():
    config = load_config('configs/sdxl_base.py:tiny')
    engine = build(config)
    alone = training_batch(engine, config, ONE)['jpg'].shape
    assert alone[1:3] == (config.data.height, config.data.width)
    config.data.update(buckets=('sdxl',), bucket_multiple=8)
    _, height, width, _ = training_batch(engine, config, ONE)['jpg'].shape
    # The buckets of SDXL's report have about the area of a square.
    assert height * width >= alone[1] * alone[2]
    assert height % 8 == width % 8 == 0
