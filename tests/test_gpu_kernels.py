"""Which kernels GPUs that are not here would run: traced, and compiled where the CUDA plugin is."""

import functools
import importlib.util
import math
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from sgm_jax.networks import remat
from sgm_jax.networks.attention import attend
from sgm_jax.platforms import has_flash_attention, target

ROOT = pathlib.Path(__file__).resolve().parents[1]
CUDNN = 'dot_product_attention_fwd_wrapper'


def _count(jaxpr, name: str) -> int:
    inside = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr)]
    own = sum(eqn.primitive.name == name for eqn in jaxpr.eqns)
    return own + sum(_count(getattr(x, 'jaxpr', x), name) for x in inside if _is_jaxpr(x))


def _is_jaxpr(x) -> bool:
    return hasattr(getattr(x, 'jaxpr', x), 'eqns')


@pytest.fixture
def with_cudnn(monkeypatch):
    """As if the library were there, which tracing asks for; nothing is compiled."""
    monkeypatch.setattr(
        'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', lambda: 91000
    )


@pytest.mark.parametrize(('rule', 'kernels'), [('block', 2), ('attention', 1)])
def test_cudnn_attention_that_is_kept_runs_once(with_cudnn, rule, kernels):
    attention = functools.partial(attend, implementation='cudnn')
    shape = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    loss = remat.layer(lambda q, k, v: attention(q, k, v).astype(jnp.float32).sum(), rule)
    with target('gpu', 'H100'):
        traced = jax.make_jaxpr(jax.grad(loss))(shape, shape, shape)
    assert _count(traced.jaxpr, CUDNN) == kernels


@pytest.mark.parametrize(('rows', 'kernels'), [(65535, 1), (65536, 0)])
def test_cudnn_gets_no_more_rows_than_it_counts(with_cudnn, rows, kernels):
    attention = functools.partial(attend, implementation='cudnn')
    shape = jax.ShapeDtypeStruct((4, rows // 4, 14, 5, 64), jnp.bfloat16)
    if rows % 4:
        shape = jax.ShapeDtypeStruct((rows, 14, 5, 64), jnp.bfloat16)
    assert _count(jax.make_jaxpr(attention)(shape, shape, shape).jaxpr, CUDNN) == kernels


def test_what_cudnn_has_no_kernel_for_goes_by_heads(with_cudnn):
    attention = functools.partial(attend, implementation='cudnn')
    large, small = (
        jax.ShapeDtypeStruct((28, tokens, 5, 64), jnp.float32) for tokens in (9216, 576)
    )
    scores = lambda x: max(
        math.prod(v.aval.shape)
        for eqn in _all(jax.make_jaxpr(attention)(x, x, x).jaxpr)
        for v in eqn.outvars
    )
    assert scores(large) < 9216**2
    assert scores(small) == 28 * 5 * 576**2


def _all(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for x in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(x):
                yield from _all(getattr(x, 'jaxpr', x))


@pytest.mark.parametrize(
    ('capability', 'found'), [('9.0', True), ('7.5', False), ('gfx942', False)]
)
def test_older_gpus_do_without_cudnn(monkeypatch, capability, found):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'local_devices', lambda: [device])
    assert has_flash_attention() is found
    with target('gpu', 'H100'):
        assert has_flash_attention()


GPU = """
from sgm_jax.parallel import hlo, topologies
topology = topologies.parse('8xH100')
topologies.prepare_process(topology)
import jax, jax.numpy as jnp
from sgm_jax.networks.attention import attend
from sgm_jax.platforms import target
sharding = jax.sharding.SingleDeviceSharding(topology.one().devices()[0])
for queries, keys in ((25, 25), (128, 77), (14, 14)):
    one = lambda n: jax.ShapeDtypeStruct((8, n, 2, 64), jnp.bfloat16, sharding=sharding)
    shapes = one(queries), one(keys), one(keys)
    with target('gpu'):
        loss = lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum()
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes)
        text = traced.lower(lowering_platforms=('cuda',)).compile().as_text()
    print(sorted(hlo.read(text).custom_calls))
one = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
names = ('NHWC', 'HWIO', 'NHWC')
convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=names)
loss = lambda x, w: jnp.square(convolve(x, w).astype(jnp.float32)).sum()
traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(one(2, 32, 32, 64), one(3, 3, 64, 64))
text = traced.lower(lowering_platforms=('cuda',)).compile().as_text()
print(sorted(hlo.read(text).custom_calls))
"""


@pytest.mark.skipif(
    importlib.util.find_spec('jax_plugins') is None
    or importlib.util.find_spec('jax_plugins.xla_cuda13') is None,
    reason='needs the CUDA plugin: pip install "jax[cuda13]"',
)
def test_cudnn_on_a_gpu_that_is_not_here():
    # Attention of odd numbers of frames and words, too, and a convolution, with their gradients.
    done = subprocess.run(
        [sys.executable, '-c', GPU], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    kernels = "['__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward']"
    *attention, convolution = done.stdout.splitlines()
    assert attention == [kernels] * 3
    for kernel in ('BackwardFilter', 'BackwardInput', 'Forward'):
        assert f'__cudnn$conv{kernel}' in convolution
