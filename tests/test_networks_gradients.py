"""Hand-written derivatives against JAX's own, of the same formulas written plainly."""

import functools
import importlib

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgm_jax.networks import derivatives
from sgm_jax.networks.attention import attend

TOLERANCE = 1e-5


def normal(*shapes, shift=0.0):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape) + shift, jnp.float32) for shape in shapes]


def assert_same(function, plain, arguments):
    """Values and all gradients, weighted at random so that none of them vanishes."""
    weights = normal(jax.eval_shape(plain, *arguments).shape, shift=0.5)[0]
    results = []
    for call in (function, plain):
        loss = lambda *arguments, call=call: jnp.sum(call(*arguments) * weights)
        gradient = jax.grad(loss, tuple(range(len(arguments))))
        results.append((call(*arguments), *golden.quick_jit(gradient)(*arguments)))
    for got, want in zip(*results, strict=True):
        golden.assert_close(got, want, TOLERANCE)


def test_layer_norm():
    def plain(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale + bias

    function = lambda *arguments: derivatives.layer_norm(*arguments, 1e-5)
    assert_same(function, plain, normal((3, 5, 24), (24,), (24,), shift=2.0))


@pytest.mark.parametrize('silu', [False, True])
@pytest.mark.parametrize('shape', [(2, 4, 6, 24), (2, 3, 4, 4, 24)])
def test_group_norm(shape, silu):
    def plain(x, scale, bias):
        y = x.reshape(len(x), -1, 6, 4)
        y = y - y.mean((1, 3), keepdims=True)
        y = y / jnp.sqrt(jnp.square(y).mean((1, 3), keepdims=True) + 1e-5)
        y = y.reshape(x.shape) * scale + bias
        return y / (1 + jnp.exp(-y)) if silu else y

    function = lambda *arguments: derivatives.group_norm(*arguments, 6, 1e-5, silu)
    assert_same(function, plain, normal(shape, (24,), (24,), shift=1.0))


@pytest.mark.parametrize('dropout', [False, True])
def test_feed_forward(dropout):
    (keep,) = normal((2, 5, 32))
    keep = 2.0 * (keep > 0) if dropout else None

    def plain(x, kernel_in, bias_in, kernel_out, bias_out):
        h = x @ kernel_in + bias_in
        value, gate = h[..., :32], h[..., 32:]
        h = value * gate * jax.scipy.stats.norm.cdf(gate)
        return (h if keep is None else h * keep) @ kernel_out + bias_out

    function = lambda *arguments: derivatives.feed_forward(*arguments, keep)
    assert_same(function, plain, normal((2, 5, 8), (8, 64), (64,), (32, 12), (12,)))


@pytest.mark.parametrize('queries', [300, 2048])
def test_attention_by_head(queries):
    """With many keys, and with so many queries that they come in chunks."""

    def plain(q, k, v):
        scores = jnp.einsum('bnhd,bmhd->bhnm', q, k) / jnp.sqrt(q.shape[-1])
        return jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(scores, -1), v)

    function = lambda *arguments: attend(*arguments, implementation='blockwise')
    shapes = (1, queries, 2, 8), (1, 260, 2, 8), (1, 260, 2, 8)
    assert_same(function, plain, normal(*shapes))


@pytest.mark.parametrize(('tokens', 'causal'), [(1024, False), (1024, True), (1100, False)])
def test_splash_attention_in_blocks_of_scores(tokens, causal, monkeypatch):
    """As a TPU computes it, with more keys than are scored at once, and with blocks that they do not fill.

    Pallas' interpreter runs the kernels.
    """
    kernel = 'jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel'
    made = importlib.import_module(kernel).make_splash_mha
    monkeypatch.setattr(f'{kernel}.make_splash_mha', functools.partial(made, interpret=True))
    call = functools.partial(attend, causal=causal)
    assert_same(
        functools.partial(call, implementation='splash'),
        functools.partial(call, implementation='xla'),
        normal(*[(1, tokens, 2, 64)] * 3),
    )


def test_half_precision_keeps_its_types():
    """Gradients have the types of what they are gradients of, and come near those in float32."""
    arguments = normal((2, 4, 4, 64), (64,), (64,))
    loss = lambda *a: jnp.sum(derivatives.group_norm(*a, 8, 1e-5, True).astype(jnp.float32) ** 2)
    gradient = golden.quick_jit(jax.grad(loss, (0, 1, 2)))
    low = gradient(arguments[0].astype(jnp.bfloat16), *arguments[1:])
    assert [g.dtype for g in low] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for got, want in zip(low, gradient(*arguments), strict=True):
        golden.assert_close(got, want, 3e-2)


@pytest.mark.parametrize('offset', [0.0, 100.0, -3000.0])
def test_group_norm_of_halves_is_that_of_the_same_numbers(offset):
    # One pass over bfloat16 and two over float32 find the same mean and variance, far from zero too.
    x = offset + jax.random.normal(jax.random.key(0), (2, 6, 5, 64)) * (1 + abs(offset) / 10)
    x = x.astype(jnp.bfloat16)
    scale, bias = jnp.linspace(0.5, 1.5, 64), jnp.linspace(-1.0, 1.0, 64)
    norm = lambda x: derivatives.group_norm(x, scale, bias, 32, 1e-5, True)
    half, whole = norm(x), norm(x.astype(jnp.float32))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=2**-8, atol=2e-4)
