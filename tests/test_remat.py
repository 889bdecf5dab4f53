"""What is computed again, and blocks that run in turn: the same numbers, in less memory or less program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from sgm_jax.networks import remat
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.transformer import SpatialVideoTransformer
from sgm_jax.networks.unet import UNetModel
from sgm_jax.parallel.compiler import jit

CONTEXT = 8


def pictures(depth: int, remat: str, scan: bool) -> nnx.Module:
    """A U-Net with a level, and three transformers."""
    return UNetModel(
        in_channels=3,
        model_channels=32,
        out_channels=32,
        num_res_blocks=1,
        attention_resolutions=(1,),
        channel_mult=(1,),
        num_head_channels=16,
        transformer_depth=depth,
        context_dim=CONTEXT,
        use_linear_in_transformer=True,
        disable_middle_transformer=True,
        remat=remat,
        scan=scan,
        rngs=Keys(0, shapes_only=True),
    )


def video(depth: int, remat: str, scan: bool) -> nnx.Module:
    """A transformer over pixels and frames."""
    return SpatialVideoTransformer(
        32,
        heads=2,
        dim_head=16,
        depth=depth,
        context_dim=CONTEXT,
        use_linear=True,
        use_spatial_context=True,
        merge_strategy='learned',
        remat=remat,
        scan=scan,
        dtype=jnp.float32,
        rngs=Keys(0, shapes_only=True),
    )


CALLS = {
    pictures: lambda network, x, context: network(x[..., :3], jnp.arange(4.0), context),
    video: lambda network, x, context: network(x, context, num_frames=2),
}


def program(network, *, depth: int = 2, remat: str = 'none', scan: bool = False):
    """Loss and gradients as a function of the parameters, and parameters that are nowhere zero."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: network(depth, remat, scan)))
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)
    params = jax.tree.map(lambda x: 0.3 * normal(*x.shape), shapes)
    x, context, weights = normal(4, 8, 8, 32), normal(4, 5, CONTEXT), normal(4, 8, 8, 32)

    def loss(params):
        return (CALLS[network](nnx.merge(graphdef, params), x, context) * weights).mean()

    return jax.value_and_grad(loss), params


@functools.cache
def found(network, **rules):
    """Loss and gradients, and the bytes of temporaries that they take."""
    function, params = program(network, **rules)
    compiled = jit(function).lower(params).compile()
    return jax.device_get(compiled(params)), compiled.memory_analysis().temp_size_in_bytes


def assert_same(network, **rules) -> None:
    """Loss and every gradient, to 1e-6 of the largest."""
    (loss, gradients), (plain_loss, plain) = (found(network, **own)[0] for own in (rules, {}))
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(plain))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * largest)
    jax.tree.map(close, gradients, plain)


RULES = [name for name in remat.RULES if name != 'none']


@pytest.mark.parametrize('rule', RULES)
def test_what_is_computed_again_is_the_same(rule):
    assert_same(pictures, remat=rule)


def test_each_rule_keeps_what_it_says():
    kept = {rule: found(pictures, remat=rule)[1] for rule in RULES}
    kept['none'] = found(pictures)[1]
    # One level and two blocks a transformer: a layer is little more than its parts.
    assert kept['full'] <= kept['block'] < 0.5 * kept['none']
    assert kept['layer'] < 0.5 * kept['none']
    assert kept['block'] < kept['dots'] < 0.75 * kept['none']
    assert kept['attention'] < kept['dots']


@pytest.mark.parametrize('network', list(CALLS))
def test_blocks_in_turn_are_the_same(network):
    assert_same(network, scan=True, remat='full')


def test_blocks_in_turn_need_less_with_remat():
    assert found(pictures, scan=True, remat='full')[1] < 0.5 * found(pictures)[1]


@pytest.mark.parametrize('network', list(CALLS))
def test_blocks_in_turn_leave_the_parameters_as_they_are(network):
    (_, params), (_, plain) = program(network, scan=True), program(network)
    assert jax.tree.structure(params) == jax.tree.structure(plain)
    paths = lambda tree: [(path, x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths(nnx.to_pure_dict(params)) == paths(nnx.to_pure_dict(plain))


def products(jaxpr) -> int:
    """Matrix products that a program is written with, a loop's once."""
    inner = [products(part) for e in jaxpr.eqns for part in jaxprs_in_params(e.params)]
    return sum(e.primitive.name == 'dot_general' for e in jaxpr.eqns) + sum(inner)


@pytest.mark.parametrize('network', list(CALLS))
def test_the_program_of_blocks_in_turn_has_one(network):
    def written(depth: int, scan: bool) -> int:
        function, params = program(network, depth=depth, scan=scan)
        return products(jax.make_jaxpr(function)(params).jaxpr)

    one, two, three = (written(depth, scan=False) for depth in (1, 2, 3))
    assert one < two < three
    assert three - two == two - one
    # A loop's backward pass may compute a product more or less than the block by itself.
    assert written(3, scan=True) == written(2, scan=True) < two
