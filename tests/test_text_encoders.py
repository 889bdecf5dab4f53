"""Text encoders against the PyTorch reference, and their names against the published checkpoints."""

import json

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sgm_jax.conditioning.text import CLIPT5Text, CLIPText, OpenCLIPText, T5Text
from sgm_jax.errors import UserError
from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.interop.targets import make
from sgm_jax.networks.attention import attend
from sgm_jax.networks.layers import Keys

ENCODERS = 'sgm.modules.encoders.modules'
CLIP, CLIP_PREFIX = f'{ENCODERS}.FrozenCLIPEmbedder', 'transformer.text_model.'
OPEN_CLIP = f'{ENCODERS}.FrozenOpenCLIPEmbedder'
OPEN_CLIP_2 = f'{ENCODERS}.FrozenOpenCLIPEmbedder2'

TINY_CLIP = {
    'vocab_size': 49408,
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
}
TINY_T5 = {'vocab_size': 384, 'd_model': 16, 'd_kv': 4, 'd_ff': 32, 'num_layers': 2, 'num_heads': 2}


def clip(**params):
    weights = golden.state_dict('clip_text_hf')
    weights = {CLIP_PREFIX + name: x for name, x in weights.items()}
    return from_sgm(CLIP, golden.config('clip_text_hf') | params, weights), weights


def open_clip(target, **params):
    # The reference deletes the image tower.
    weights = golden.state_dict('open_clip')
    weights = {f'model.{k}': x for k, x in weights.items() if not k.startswith('visual.')}
    return from_sgm(target, golden.config('open_clip') | params, weights), weights


def assert_returns(module, weights):
    returned = to_sgm(module)
    assert returned.keys() == weights.keys()
    for name, x in weights.items():
        np.testing.assert_array_equal(returned[name], x, err_msg=name)


def test_clip_gives_transformers_states():
    inputs, outputs = golden.arrays('clip_text_hf')
    tokens = inputs['tokens'].astype(np.int32)
    embedder, weights = clip(always_return_pooled=True)
    last, pooled = golden.quick_jit(lambda tokens: embedder(tokens))(tokens)
    golden.assert_close(last, outputs['last_hidden_state'])
    golden.assert_close(pooled, outputs['pooled'])
    assert_returns(embedder, weights)

    hidden, _ = clip(layer='hidden', layer_idx=2)
    golden.assert_close(golden.quick_jit(lambda t: hidden(t))(tokens), outputs['hidden_2'])
    # An end of 2 is old config.json files' word for the last of the vocabulary.
    token, _ = clip(layer='pooled', eos_token_id=2)
    golden.assert_close(golden.quick_jit(lambda t: token(t))(tokens), outputs['pooled'][:, None])


def test_clip_pads_with_the_ends_id_itself():
    inputs, outputs = golden.arrays('clip_text_hf')
    end = golden.config('clip_text_hf')['eos_token_id']
    tokens = inputs['tokens'].astype(np.int32)
    # The shared tokenisation: zeros after the first end.
    padding = np.cumsum(tokens == end, 1) > 1
    zeros = np.where(padding, 0, tokens)
    assert (zeros != tokens).any()
    embedder, _ = clip()
    golden.assert_close(
        golden.quick_jit(lambda t: embedder(t))(zeros), outputs['last_hidden_state']
    )


def test_open_clip_gives_the_references_states():
    inputs, outputs = golden.arrays('open_clip')
    tokens = inputs['tokens'].astype(np.int32)
    sdxl, weights = open_clip(
        OPEN_CLIP_2, layer='penultimate', always_return_pooled=True, legacy=False
    )
    z, pooled = golden.quick_jit(lambda t: sdxl(t))(tokens)
    golden.assert_close(z, outputs['penultimate'])
    golden.assert_close(pooled, outputs['pooled'])
    assert_returns(sdxl, weights)
    for layer in ('penultimate', 'last'):
        legacy, _ = open_clip(OPEN_CLIP, layer=layer)
        out = golden.quick_jit(lambda t, legacy=legacy: legacy(t))(tokens)
        golden.assert_close(out, outputs[f'{layer}_ln'])


SDXL_OPEN_CLIP = {
    'arch': 'ViT-bigG-14',
    'version': 'laion2b_s39b_b160k',
    'freeze': True,
    'layer': 'penultimate',
    'always_return_pooled': True,
    'legacy': False,
}


@pytest.mark.parametrize(
    ('checkpoint', 'place', 'target', 'params'),
    [
        ('sd_xl_base', 0, CLIP, {'layer': 'hidden', 'layer_idx': 11}),
        ('sd_xl_base', 1, OPEN_CLIP_2, SDXL_OPEN_CLIP),
        ('sd_xl_refiner', 0, OPEN_CLIP_2, SDXL_OPEN_CLIP),
        ('sd_2_1', 0, OPEN_CLIP, {'freeze': True, 'layer': 'penultimate'}),
    ],
)
def test_names_are_the_published_ones(checkpoint, place, target, params):
    prefix = f'conditioner.embedders.{place}.'
    published = {
        name.removeprefix(prefix): tuple(shape)
        for name, shape in golden.manifest(checkpoint).items()
        if name.startswith(prefix)
    }
    ours = {name: x.shape for name, x in to_sgm(make(target, params)).items()}
    assert ours == published


def test_old_files_positions_are_passed_over():
    _, weights = clip()
    places = {CLIP_PREFIX + 'embeddings.position_ids': np.arange(16)[None]}
    assert_returns(from_sgm(CLIP, golden.config('clip_text_hf'), weights | places), weights)
    with pytest.raises(ValueError, match='unexpected: other'):
        from_sgm(CLIP, golden.config('clip_text_hf'), weights | {'other': np.zeros(1)})


def stored_t5():
    """A tiny T5 of transformers: config, names and shapes, tokens, output; and its buckets."""
    with np.load(golden.FOLDER / 't5_encoder.npz') as npz:
        return {k: json.loads(str(npz[k])) if npz[k].dtype.kind == 'U' else npz[k] for k in npz}


def test_t5_gives_transformers_states():
    stored = stored_t5()
    weights = golden.parameters(stored['shapes'])
    shared = weights['transformer.shared.weight']
    target = f'{ENCODERS}.FrozenT5Embedder'
    # transformers' state dicts hold the table of tokens twice.
    twice = weights | {'transformer.encoder.embed_tokens.weight': shared}
    embedder = from_sgm(target, stored['config'], twice)
    # 160 tokens reach the last bucket, of distances from 128 on.
    out = golden.quick_jit(lambda t: embedder(t))(stored['tokens'])
    golden.assert_close(out, stored['out'])
    assert_returns(embedder, weights)


def test_t5s_distances_fall_into_transformers_buckets():
    from sgm_jax.networks.t5 import relative_buckets

    stored = stored_t5()
    distances = stored['distances']
    assert distances.min() == -600
    assert distances.max() == 600
    np.testing.assert_array_equal(relative_buckets(distances, 32, 128), stored['buckets'])


def test_clip_and_t5_read_one_row_of_ids():
    build = lambda: CLIPT5Text(
        clip_arch=TINY_CLIP, t5_arch=TINY_T5, t5_max_length=20, t5_tokenizer='byt5', rngs=Keys(0)
    )
    both = nnx.eval_shape(build)
    assert both.tokenizer == ('clip', 'byt5')
    assert both.max_length == (77, 20)
    tokens = np.concatenate([np.full((2, 77), 49407), np.ones((2, 20))], 1).astype(np.int32)
    (clip, t5), alone = golden.quick_jit(
        lambda t: ((both := build())(t), both.clip_encoder(t[:, :77]))
    )(tokens)
    assert (clip.shape, t5.shape) == ((2, 77, 32), (2, 20, 16))
    golden.assert_close(clip, alone)
    names = {name.split('.')[0] for name in to_sgm(both)}
    assert names == {'clip_encoder', 't5_encoder'}
    empty = make(f'{ENCODERS}.FrozenCLIPT5Encoder', {'t5_version': 'google/byt5-small'})
    assert empty.max_length == (77, 77)
    assert 'clip_encoder.transformer.text_model.final_layer_norm.weight' in to_sgm(empty)
    assert to_sgm(empty)['t5_encoder.transformer.shared.weight'].shape == (384, 1472)


# In millions: the parameters of transformers' T5EncoderModel with the published config.json.
@pytest.mark.parametrize(
    ('version', 'millions'), [('google/t5-v1_1-xxl', 4762), ('byt5-base', 415)]
)
def test_t5s_sizes(version, millions):
    empty = make(f'{ENCODERS}.FrozenT5Embedder', {'version': version})
    total = sum(np.prod(x.shape) for x in to_sgm(empty).values())
    assert round(total / 1e6) == millions


def test_encoders_name_their_tokenizers():
    names = lambda **options: nnx.eval_shape(lambda: T5Text(**options, rngs=Keys(0))).tokenizer
    assert names(arch='google/byt5-small') == 'byt5'
    assert names(arch=TINY_T5, tokenizer='t5.json') == 't5.json'
    assert names(arch='t5-v1_1-small') == ''
    assert nnx.eval_shape(lambda: CLIPText(rngs=Keys(0))).tokenizer == 'clip'


@pytest.mark.parametrize('make', ['clip', 'open_clip', 't5'])
def test_bfloat16_computes_beside_float32_parameters_with_gradients(make):
    if make == 'clip':
        build = lambda dtype: CLIPText(arch=TINY_CLIP, dtype=dtype, rngs=Keys(0))
    elif make == 'open_clip':
        text = {'context_length': 77, 'vocab_size': 300, 'width': 32, 'heads': 4, 'layers': 2}
        arch = {'embed_dim': 16, 'text_cfg': text}
        build = lambda dtype: OpenCLIPText(arch=arch, dtype=dtype, rngs=Keys(0))
    else:
        build = lambda dtype: T5Text(arch=TINY_T5, dtype=dtype, rngs=Keys(0))
    tokens = np.arange(20, dtype=np.int32).reshape(2, 10) * 7
    shapes = lambda dtype: nnx.graphdef(nnx.eval_shape(lambda: build(dtype)))
    graphdef, single = shapes(jnp.bfloat16), shapes(jnp.float32)
    params = golden.quick_jit(lambda: nnx.state(build(jnp.float32)))()
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    half = golden.quick_jit(lambda params: nnx.merge(graphdef, params)(tokens))(params)
    assert half.dtype == jnp.float32
    full = golden.quick_jit(lambda params: nnx.merge(single, params)(tokens))(params)
    golden.assert_close(half, full, 3e-2)

    loss = lambda params: jnp.sum(jnp.square(nnx.merge(graphdef, params)(tokens)[:, -1]))
    gradients = golden.quick_jit(jax.grad(loss))(params)
    paths = nnx.to_flat_state(gradients)
    # The text projection and the scale of the logits have no part in the tokens.
    silent = [path[-1] for path, x in paths if not np.abs(np.asarray(x[...], np.float32)).max() > 0]
    assert set(silent) <= {'text_projection', 'logit_scale'}


def softmax_attention(q, k, v, bias, causal):
    """Attention by its definition, in float64."""
    scores = np.einsum('bnhd,bmhd->bhnm', *(x.astype(np.float64) for x in (q, k)))
    scores = scores / np.sqrt(q.shape[-1]) + bias
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum('bhnm,bmhd->bnhd', weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize('implementation', ['xla', 'blockwise', 'cudnn', 'splash'])
@pytest.mark.parametrize('tokens', [7, 300])
def test_causal_attention_and_biases(implementation, tokens):
    normal = np.random.default_rng(0).standard_normal
    q, k, v = (normal((2, tokens, 3, 8)).astype(np.float32) for _ in range(3))
    bias = normal((1, 3, tokens, tokens)).astype(np.float32)
    for causal in (False, True):
        for added in (None, bias):
            out = attend(q, k, v, bias=added, causal=causal, implementation=implementation)
            wanted = softmax_attention(q, k, v, 0.0 if added is None else added, causal)
            golden.assert_close(out, wanted)


@pytest.mark.parametrize('implementation', ['xla', 'blockwise'])
def test_gradients_pass_through_the_mask_and_the_bias(implementation):
    from jax.test_util import check_grads

    normal = np.random.default_rng(0).standard_normal
    arrays = [
        jnp.asarray(normal(shape), jnp.float32) for shape in [(1, 4, 2, 3)] * 3 + [(1, 2, 4, 4)]
    ]
    run = lambda q, k, v, bias: attend(
        q, k, v, bias=bias, causal=True, implementation=implementation
    )
    check_grads(run, arrays, order=1, modes=('rev',), atol=1e-2, rtol=1e-2)


def test_what_does_not_fit_is_named():
    def build(module, **options):
        return nnx.eval_shape(lambda: module(**options, rngs=Keys(0)))

    with pytest.raises(ValueError, match="unknown layer 'first'"):
        build(CLIPText, arch=TINY_CLIP, layer='first')
    with pytest.raises(ValueError, match='layer_idx None is none of the 3 hidden states'):
        build(CLIPText, arch=TINY_CLIP, layer='hidden')
    with pytest.raises(ValueError, match='max_length 99 is more than the 77 places'):
        build(CLIPText, arch=TINY_CLIP, max_length=99)
    with pytest.raises(ValueError, match='set legacy=False'):
        build(OpenCLIPText, always_return_pooled=True)
    with pytest.raises(UserError, match="arch: unknown name 'clip'; choose one of: clip-vit"):
        build(CLIPText, arch='clip')
    with pytest.raises(UserError, match="did you mean 'hidden_size'"):
        build(CLIPText, arch=TINY_CLIP | {'hidden_sizes': 3})
    with pytest.raises(UserError, match="text_cfg: 'hf_model_name' is not known"):
        build(OpenCLIPText, arch={'embed_dim': 4, 'text_cfg': {'hf_model_name': 'x'}})
    with pytest.raises(ValueError, match='5 queries on 6 keys'):
        attend(jnp.zeros((1, 5, 1, 8)), *[jnp.zeros((1, 6, 1, 8))] * 2, causal=True)
    embedder = CLIPText(arch=TINY_CLIP | {'max_position_embeddings': 8}, rngs=Keys(0))
    with pytest.raises(ValueError, match='9 tokens; the model has places for 8'):
        embedder(jnp.zeros((1, 9), jnp.int32))
