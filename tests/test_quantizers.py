"""Codebooks against the PyTorch reference, closed forms and the papers' equations."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.networks import quantizers
from sgm_jax.networks.layers import Keys, Statistic
from sgm_jax.networks.quantizers import EMAVectorQuantizer, GumbelQuantizer, VectorQuantizer

QUANTIZE = 'sgm.modules.autoencoding.regularizers.quantize'
LOGS = {'loss/vq', 'perplexity', 'cluster_usage', 'min_encoding_indices'}


def draw(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def vector_quantizer(codes, **options):
    """A VectorQuantizer of these codes."""
    module = VectorQuantizer(*codes.shape, **options, rngs=Keys(0))
    module.embedding.weight[...] = jnp.asarray(codes)
    return module


def call(module, z, key=None, temperature=None, **options):
    """A compiled call, which leaves in the module the statistics that it moved."""
    graphdef, state = nnx.split(module)
    given = {} if temperature is None else {'temperature': temperature}
    run = compiled(graphdef, tuple(options.items()))
    out, moved = run(nnx.to_pure_dict(state), jnp.asarray(z), key, given)
    nnx.update(module, moved)
    return jax.tree.map(np.asarray, out)


@functools.cache
def compiled(graphdef, options):
    """A quantizer's call as a function of its state: together, small operations compile faster."""

    def run(state, z, key, given):
        module = nnx.merge(graphdef, state)
        return module(z, key, **dict(options), **given), nnx.to_pure_dict(nnx.state(module))

    return golden.quick_jit(run)


# One quantizer of each kind: 10 codes of 4 channels, for 4 channels.
KINDS = [
    functools.partial(VectorQuantizer, 10, 4, rngs=Keys(0)),
    functools.partial(EMAVectorQuantizer, 10, 4, 0.25, rngs=Keys(0)),
    functools.partial(GumbelQuantizer, 4, 4, 10, rngs=Keys(0)),
]


def test_vector_quantizer_is_the_references():
    weights = golden.state_dict('vector_quantizer')
    module = from_sgm(f'{QUANTIZE}.VectorQuantizer', golden.config('vector_quantizer'), weights)
    inputs, outputs = golden.arrays('vector_quantizer')
    z_q, logs = call(module, golden.last(inputs['z']))
    assert logs.keys() == LOGS
    golden.assert_close(z_q, golden.last(outputs['z_q']))
    golden.assert_close(logs['loss/vq'], outputs['loss/vq'])
    indices = logs['min_encoding_indices']
    assert (indices.shape, indices.dtype) == ((2, 6, 5), jnp.int32)
    np.testing.assert_array_equal(indices.reshape(-1), outputs['min_encoding_indices'])
    returned = to_sgm(module)
    assert returned.keys() == weights.keys()
    np.testing.assert_array_equal(returned['embedding.weight'], weights['embedding.weight'])


def test_names_are_the_references():
    state = lambda kind, **options: to_sgm(nnx.eval_shape(lambda: kind(**options, rngs=Keys(0))))
    vq, ema, gumbel = (state(kind, remap=[1, 2, 3]) for kind in KINDS)
    shape = lambda arrays: {name: array.shape for name, array in arrays.items()}
    assert shape(vq) == {'embedding.weight': (10, 4), 'used': (3,)}
    assert shape(ema) == {
        'embedding.weight': (10, 4),
        'embedding.cluster_size': (10,),
        'embedding.embed_avg': (10, 4),
        'used': (3,),
    }
    assert shape(gumbel) == {
        'proj.weight': (10, 4, 1, 1),
        'proj.bias': (10,),
        'embed.weight': (10, 4),
        'used': (3,),
    }
    normed = state(KINDS[0], embedding_weight_norm=True)
    assert shape(normed) == {'embedding.weight_g': (1, 4), 'embedding.weight_v': (10, 4)}


def test_the_nearest_code_is_chosen_and_given_exactly():
    codes, z = draw(40, 6), draw(3, 5, 7, 6, seed=1)
    distances = np.square(z[..., None, :].astype(np.float64) - codes).sum(-1)
    module = vector_quantizer(codes)
    z_q, logs = call(module, z)
    np.testing.assert_array_equal(logs['min_encoding_indices'], distances.argmin(-1))
    np.testing.assert_array_equal(z_q, codes[distances.argmin(-1)])
    np.testing.assert_array_equal(module.get_codebook_entry(logs['min_encoding_indices']), z_q)


def test_codes_far_from_the_origin_are_told_apart():
    codes = np.float32(100) + np.arange(8, dtype=np.float32)[:, None] / 8
    _, logs = call(vector_quantizer(codes), codes + np.float32(0.03))
    np.testing.assert_array_equal(logs['min_encoding_indices'], np.arange(8))


def test_half_precision_is_quantised_in_single():
    z_q, logs = call(vector_quantizer(draw(10, 4)), jnp.asarray(draw(5, 4), jnp.bfloat16))
    assert z_q.dtype == logs['loss/vq'].dtype == jnp.float32


def test_initial_codes():
    codes = VectorQuantizer(20, 100, rngs=Keys(0)).codes()
    assert np.abs(codes).max() <= 1 / 20
    np.testing.assert_allclose(np.std(codes), 1 / 20 / np.sqrt(3), rtol=0.05)


def test_gradients_of_the_vector_quantizer():
    beta, codes, z, upstream = 0.3, draw(9, 4), draw(2, 3, 5, 4, seed=1), draw(2, 3, 5, 4, seed=2)
    graphdef, state = nnx.split(vector_quantizer(codes, beta=beta))

    def objective(state, z):
        z_q, logs = nnx.merge(graphdef, state)(z)
        return (z_q * upstream).sum() + logs['loss/vq']

    to_state, to_z = golden.quick_jit(jax.grad(objective, argnums=(0, 1)))(state, z)
    indices = np.square(z[..., None, :] - codes).sum(-1).argmin(-1)
    pull = 2 * (z - codes[indices]) / z.size
    golden.assert_close(to_z, upstream + beta * pull)
    to_codes = np.zeros_like(codes)
    np.add.at(to_codes, indices.reshape(-1), -pull.reshape(-1, 4))
    golden.assert_close(to_state['embedding']['weight'][...], to_codes)

    # And the commitment against differences of the loss itself, with the code in each one's place.
    commitment = lambda z: beta * np.square(z - codes[indices].astype(np.float64)).mean()
    for place in [(0, 0, 0, 0), (1, 2, 4, 3)]:
        step = np.zeros(z.shape)
        step[place] = 1e-5
        slope = (commitment(z + step) - commitment(z - step)) / 2e-5
        np.testing.assert_allclose(to_z[place] - upstream[place], slope, rtol=1e-3, atol=1e-6)


def test_normed_codes_have_their_columns_lengths():
    module = VectorQuantizer(10, 4, embedding_weight_norm=True, rngs=Keys(0))
    lengths = np.array([[0.5, 1.0, 2.0, 3.0]], np.float32)
    module.embedding.weight_g[...] = jnp.asarray(lengths)
    np.testing.assert_allclose(np.linalg.norm(module.codes(), axis=0), lengths[0], rtol=1e-6)


def ema_steps(codes, batches, decay, eps):
    """Codes, N and m after each batch; van den Oord et al. 2017, equations 6 to 8, in float64.

    The division has the Laplace smoothing that implementations add: N of each code and eps,
    scaled so that their sum stays.
    """
    e, N, m = codes.astype(np.float64), np.zeros(len(codes)), codes.astype(np.float64)
    for z in batches:
        nearest = [int(np.argmin([np.sum((v - code) ** 2) for code in e])) for v in z]
        for i in range(len(e)):
            mine = [v for v, code in zip(z, nearest) if code == i]
            N[i] = N[i] * decay + len(mine) * (1 - decay)
            m[i] = m[i] * decay + np.sum(mine, 0) * (1 - decay)
        smoothed = (N + eps) * N.sum() / (N + eps).sum()
        e = m / smoothed[:, None]
        yield e, N.copy(), m.copy()


def test_ema_update_is_the_papers():
    codes, decay, eps = draw(6, 3), 0.9, 1e-3
    batches = draw(2, 50, 3, seed=1)
    module = EMAVectorQuantizer(6, 3, 0.25, decay, eps, rngs=Keys(0))
    module.embedding.weight[...] = module.embedding.embed_avg[...] = jnp.asarray(codes)
    before = codes
    for z, (e, N, m) in zip(batches, ema_steps(codes, batches, decay, eps), strict=True):
        z_q, logs = call(module, z.reshape(2, 5, 5, 3), train=True)
        # By the codes from before the update.
        rows = np.square(z[:, None] - before).sum(-1).argmin(-1)
        golden.assert_close(z_q.reshape(-1, 3), before[rows])
        golden.assert_close(logs['loss/vq'], 0.25 * np.square(z - before[rows]).mean())
        golden.assert_close(module.embedding.cluster_size[...], N)
        golden.assert_close(module.embedding.embed_avg[...], m)
        golden.assert_close(module.embedding.weight[...], e)
        before = np.asarray(module.embedding.weight[...])
    # Without `train` nothing moves.
    call(module, batches[0])
    np.testing.assert_array_equal(module.embedding.weight[...], before)


def test_ema_statistics_come_out_of_a_gradient_step():
    module = EMAVectorQuantizer(6, 3, 0.25, rngs=Keys(0))
    graphdef, params, statistics = nnx.split(module, nnx.Param, Statistic)
    assert not jax.tree.leaves(params)
    statistics = nnx.to_pure_dict(statistics)
    z, upstream = draw(8, 3), draw(8, 3, seed=1)

    @golden.quick_jit
    def step(statistics, z):
        def objective(z):
            module = nnx.merge(graphdef, {}, statistics)
            z_q, logs = module(z, train=True)
            moved = nnx.to_pure_dict(nnx.state(module, Statistic))
            return (z_q * upstream).sum() + logs['loss/vq'], moved

        return jax.grad(objective, has_aux=True)(z)

    gradient, moved = step(statistics, z)
    z_q, _ = call(module, z, train=True)
    golden.assert_close(gradient, upstream + 0.25 * 2 * (z - z_q) / z.size)
    want = nnx.to_pure_dict(nnx.state(module))
    jax.tree.map(golden.assert_close, moved, want)
    # The gradient step left the module itself alone, until it was called.
    assert float(np.sum(want['embedding']['cluster_size'])) == pytest.approx(0.01 * 8)


def test_ema_codes_settle_on_the_means_of_clusters():
    centres = np.array([[-4, 0], [4, 0], [0, 4]], np.float32)
    z = (centres[:, None] + draw(3, 40, 2, scale=0.1)).reshape(-1, 2)
    module = EMAVectorQuantizer(3, 2, 0.25, 0.5, rngs=Keys(0))
    module.embedding.weight[...] = module.embedding.embed_avg[...] = jnp.asarray(centres) / 2
    for _ in range(30):
        call(module, z, train=True)
    golden.assert_close(module.codes(), z.reshape(3, 40, 2).mean(1), 1e-4)


def test_gumbel_without_a_key_takes_the_likeliest():
    module = GumbelQuantizer(5, 4, 10, rngs=Keys(0))
    z = draw(50, 5)
    z_q, logs = call(module, z)
    assert logs.keys() == LOGS
    kernel, bias = np.asarray(module.proj.kernel[...][0, 0]), np.asarray(module.proj.bias[...])
    logits = (z @ kernel + bias).astype(np.float64)
    np.testing.assert_array_equal(logs['min_encoding_indices'], logits.argmax(-1))
    np.testing.assert_array_equal(z_q, np.asarray(module.codes())[logits.argmax(-1)])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kl = (shares * np.log(shares * 10)).sum(-1).mean()
    golden.assert_close(logs['loss/vq'], 5e-4 * kl)
    # The 1x1 convolution that its names say it is.
    conv = golden.quick_jit(module.proj)(z[:, None, None])
    golden.assert_close(conv[:, 0, 0], logits)


@pytest.mark.parametrize('train', [False, True])
def test_gumbel_draws_are_codes(train):
    module = GumbelQuantizer(5, 4, 10, rngs=Keys(0))
    z = draw(50, 5)
    z_q, logs = call(module, z, jax.random.key(1), train=train)
    indices = logs['min_encoding_indices']
    np.testing.assert_array_equal(z_q, np.asarray(module.codes())[indices])
    np.testing.assert_array_equal(module.get_codebook_entry(indices), z_q)
    assert (indices != call(module, z)[1]['min_encoding_indices']).any()


def test_gumbel_draws_as_often_as_the_logits_say():
    module = GumbelQuantizer(5, 4, 10, rngs=Keys(0))
    shares = np.arange(1, 11) / 55
    module.proj.bias[...] = jnp.asarray(np.log(shares), jnp.float32)
    # However sharp the mixture: the temperature does not bias the draw.
    z = np.zeros((20000, 5), np.float32)
    _, logs = call(module, z, jax.random.key(0), temperature=0.1)
    drawn = np.bincount(logs['min_encoding_indices'], minlength=10) / len(z)
    np.testing.assert_allclose(drawn, shares, atol=0.012)


def test_gumbel_mixtures_sharpen_with_the_temperature():
    module = GumbelQuantizer(5, 4, 10, straight_through=False, rngs=Keys(0))
    z, key = draw(50, 5), jax.random.key(1)
    gap = lambda temperature: np.abs(
        call(module, z, key, train=True, temperature=temperature)[0] - call(module, z, key)[0]
    ).max()
    assert gap(1e-4) < 1e-3 < gap(1.0) < gap(10.0)
    # And the default is temp_init's.
    np.testing.assert_array_equal(
        call(module, z, key, train=True)[0], call(module, z, key, train=True, temperature=1.0)[0]
    )


def test_gumbel_divergence_of_uniform_logits_is_zero():
    module = GumbelQuantizer(5, 4, 10, rngs=Keys(0))
    module.proj.kernel[...] = jnp.asarray(np.zeros((1, 1, 5, 10), np.float32))
    module.proj.bias[...] = jnp.asarray(np.full((10,), 3, np.float32))
    assert abs(call(module, draw(50, 5))[1]['loss/vq']) < 1e-9


def test_gumbel_gradients_reach_the_projection():
    graphdef, state = nnx.split(GumbelQuantizer(5, 4, 10, rngs=Keys(0)))
    z, key, temperature = draw(20, 5), jax.random.key(1), 0.7

    def objective(state):
        return nnx.merge(graphdef, state)(z, key, train=True, temperature=temperature)[0].sum()

    got = golden.quick_jit(jax.grad(objective))(state)['proj']['bias'][...]
    # The derivative is the mixture's: that of a softmax, in numpy.
    module = nnx.merge(graphdef, state)
    kernel, bias = np.asarray(module.proj.kernel[...][0, 0]), np.asarray(module.proj.bias[...])
    noisy = z @ kernel + bias + np.asarray(jax.random.gumbel(key, (20, 10)))
    y = np.exp(noisy / temperature)
    y /= y.sum(-1, keepdims=True)
    value = np.asarray(module.codes()).sum(-1)
    want = (y * (value - (y * value).sum(-1, keepdims=True)) / temperature).sum(0)
    golden.assert_close(got, want, 1e-4)


USED = [7, 2, 5]


@pytest.mark.parametrize('form', ['list', 'array', 'file'])
@pytest.mark.parametrize('kind', KINDS)
def test_remap_and_back(kind, form, tmp_path):
    np.save(tmp_path / 'used.npy', np.array(USED))
    remap = {'list': USED, 'array': np.array(USED), 'file': str(tmp_path / 'used.npy')}[form]
    module = kind(remap=remap, unknown_index='extra')
    known = np.array([[5, 7], [2, 2]])
    places = module.remap_to_used(known)
    np.testing.assert_array_equal(places, [[2, 0], [1, 1]])
    np.testing.assert_array_equal(module.unmap_to_all(places), known)
    np.testing.assert_array_equal(
        module.get_codebook_entry(places), np.asarray(module.codes())[known]
    )


def test_unknown_indices():
    every = np.arange(10)
    known = np.isin(every, USED)
    extra, fixed, drawn = (
        VectorQuantizer(10, 4, remap=USED, unknown_index=policy, rngs=Keys(0))
        for policy in ('extra', 1, 'random')
    )
    assert (extra.re_embed, fixed.re_embed, drawn.re_embed) == (4, 3, 3)
    np.testing.assert_array_equal(extra.remap_to_used(every)[~known], 3)
    np.testing.assert_array_equal(fixed.remap_to_used(every)[~known], 1)
    np.testing.assert_array_equal(extra.unmap_to_all(np.array([3, 0, -1])), [7, 7, 7])
    many = np.zeros((300,), np.int32)
    np.testing.assert_allclose(
        quantizers.usage(drawn.remap_to_used(many, jax.random.key(0)), 3), 100, atol=30
    )
    with pytest.raises(ValueError, match='give a key'):
        drawn.remap_to_used(every)


def test_logged_indices_are_remapped():
    codes = draw(10, 4)
    module = vector_quantizer(codes, remap=USED, unknown_index='extra')
    z_q, logs = call(module, codes)
    # The codes themselves are not limited to the list; only their numbers are.
    np.testing.assert_array_equal(z_q, codes)
    np.testing.assert_array_equal(logs['min_encoding_indices'], module.remap_to_used(np.arange(10)))
    np.testing.assert_allclose(logs['perplexity'], 10, rtol=1e-5)

    module = GumbelQuantizer(4, 4, 10, remap=USED, rngs=Keys(0))
    z_q, logs = call(module, draw(100, 4), jax.random.key(0), train=True)
    assert set(np.asarray(logs['min_encoding_indices']).tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(module.get_codebook_entry(logs['min_encoding_indices']), z_q)
    assert logs['cluster_usage'] == 3


def test_perplexity_and_dead_codes():
    uniform = quantizers.usage(np.arange(32).reshape(2, 16) % 16, 16)
    np.testing.assert_array_equal(uniform, 2)
    perplexity, codes = quantizers.measure_perplexity(uniform)
    np.testing.assert_allclose(perplexity, 16, rtol=1e-5)
    assert (codes, quantizers.dead_codes(uniform)) == (16, 0)

    one = quantizers.usage(np.full((2, 16), 3), 16)
    perplexity, codes = quantizers.measure_perplexity(one)
    np.testing.assert_allclose(perplexity, 1, rtol=1e-6)
    assert (codes, quantizers.dead_codes(one)) == (1, 15)

    # What no code has is nobody's.
    np.testing.assert_array_equal(quantizers.usage(np.array([0, 2, 3, -1]), 3), [1, 0, 1])


def test_calls_are_alike():
    for kind in KINDS:
        z_q, logs = call(kind(), draw(2, 3, 3, 4), jax.random.key(0), train=True)
        assert z_q.shape == (2, 3, 3, 4)
        assert logs.keys() == LOGS
        assert {name: x.shape for name, x in logs.items()} == {
            **dict.fromkeys(LOGS, ()),
            'min_encoding_indices': (2, 3, 3),
        }
    renamed = VectorQuantizer(10, 4, loss_key='loss/codes', rngs=Keys(0))
    assert 'loss/codes' in call(renamed, draw(2, 4))[1]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'unknown_index': 'none'}, "unknown_index must be .* got 'none'"),
        ({'unknown_index': None}, 'unknown_index must be'),
        ({'remap': 'absent.npy'}, "remap 'absent.npy': needs a .npy file"),
        ({'remap': [0.5, 1.0]}, 'needs integers'),
        ({'remap': [[1, 2]]}, r'shape \(1, 2\)'),
        ({'remap': [3, 10]}, 'codes are 0 to 9, and this list has 3 to 10'),
    ],
)
def test_bad_options_are_errors(kind, options, said):
    with pytest.raises(ValueError, match=said):
        nnx.eval_shape(lambda: kind(**options, rngs=Keys(0)))


def test_bad_calls_are_errors():
    for kind in KINDS:
        module = kind()
        with pytest.raises(ValueError, match='vectors of 4 channels, got 5'):
            call(module, draw(2, 5))
        with pytest.raises(ValueError, match='no list of used codes'):
            module.remap_to_used(np.zeros((2,), np.int32))
    with pytest.raises(ValueError, match='give the call a key'):
        KINDS[2]()(draw(2, 4), train=True)
    remapped = VectorQuantizer(10, 4, remap=USED, rngs=Keys(0))
    with pytest.raises(ValueError, match='give a key'):
        remapped(draw(2, 4))
