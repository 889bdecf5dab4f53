"""What configurations beyond the published ones compute, by properties that hold for any weights."""

import math

import golden
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_networks_configs import (
    DECODER,
    EMBEDDER,
    ENCODER,
    ENGINE,
    IDENTITY,
    PIXELS,
    UNET,
    VIDEO_DECODER,
    VIDEO_UNET,
    draw,
    load,
    shapes,
)

from sgm_jax.networks.layers import downsample_mean, timestep_embedding, upsample_nearest
from sgm_jax.networks.transformer import AlphaBlender


def test_blending_strategies():
    """What the blend keeps of space: a factor of log 3 is an alpha of 3/4, and an image's alpha is 1."""
    space = np.ones((2, 3, 1), np.float32)
    blend = lambda strategy, factor, who: AlphaBlender(factor, strategy)(space, 0 * space, who)[
        ..., 0
    ]
    images = np.array([[1, 0, 0], [0, 1, 0]])
    golden.assert_close(blend('fixed', 0.2, images), np.full((2, 3), 0.2))
    golden.assert_close(blend('learned', math.log(3), images), np.full((2, 3), 0.75))
    mixed = blend('learned_with_images', math.log(3), images)
    golden.assert_close(mixed, np.where(images, 1.0, 0.75))
    for who in (None, np.zeros((1, 1))):
        golden.assert_close(blend('learned_with_images', math.log(3), who), np.full((2, 3), 0.75))


def test_the_layers_over_time_do_not_touch_images():
    small = {'merge_strategy': 'learned_with_images', 'num_res_blocks': 0, 'time_context_dim': 20}
    over_time = {n: s for n, s in shapes(VIDEO_UNET, **small).items() if '.time_' in n}
    unet, _ = load(VIDEO_UNET, **small)
    other, _ = load(VIDEO_UNET, golden.parameters(over_time, 'other'), **small)
    graph, weights = nnx.split(unet)
    x, context, vector = draw(3, 4, 4, 4), draw(3, 2, 24, seed=1), draw(1, 20, seed=2)

    @golden.quick_jit
    def run(weights, indicator, vector):
        options = dict(num_frames=3, image_only_indicator=indicator, time_context=vector)
        return nnx.merge(graph, weights)(x, np.arange(3.0), context, **options)

    tokens, second = vector[:, None], nnx.split(other)[1]
    images, mixed = np.ones((1, 3)), np.array([[1.0, 0.0, 0.0]])
    first = run(weights, images, tokens)
    golden.assert_close(run(second, images, tokens), first, 1e-6)
    assert np.abs(run(second, mixed, tokens) - first).max() > 1e-3
    # An indicator of one clip, and a context of one vector for each clip, may be flat.
    golden.assert_close(run(weights, mixed[0], vector), run(weights, mixed, tokens), 1e-6)


def test_classes_as_times_are_vectors_of_sinusoids():
    times = np.array([3.0, 512.0])
    angles = times[:, None] * np.exp(-math.log(10000.0) * np.arange(16) / 16)
    sinusoids = np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    small = {'num_res_blocks': 0, 'channel_mult': [1], **PIXELS}
    by_time, state = load(UNET, num_classes='timestep', **small)
    same = {k.replace('label_emb.1.', 'label_emb.0.'): v for k, v in state.items()}
    by_vector, _ = load(UNET, same, num_classes='sequential', adm_in_channels=32, **small)
    x, t = draw(2, 4, 4, 3), np.array([1.0, 999.0])
    run = golden.quick_jit(lambda: (by_time(x, t, y=times), by_vector(x, t, y=sinusoids)))
    golden.assert_close(*run())


@pytest.mark.parametrize('changes', [{}, {'resblock_updown': True}])
def test_lines_and_volumes_agree_with_images(changes):
    """Kernels of a single row, on images of equal rows, are a line's; a volume of one slice is an image."""
    inner = {'use_scale_shift_norm': True, 'num_res_blocks': 0, **PIXELS, **changes}
    line, state = load(UNET, dims=1, **inner)
    x, t = draw(2, 8, 3), np.array([1.0, 999.0])
    expected = golden.quick_jit(lambda: line(x, t))()

    def widen(array, axis, size):
        wide = np.zeros((*array.shape[:axis], size, *array.shape[axis:]), np.float32)
        np.moveaxis(wide, axis, 0)[size // 2] = array
        return wide

    kernels = [k for k, v in state.items() if v.ndim == 3]
    assert kernels
    flat = {k: widen(state[k], 2, state[k].shape[-1]) if k in kernels else state[k] for k in state}
    image, _ = load(UNET, flat, dims=2, **inner)
    rows = np.broadcast_to(x[:, None], (2, 4, 8, 3))
    out = golden.quick_jit(lambda: image(rows, t))()
    golden.assert_close(out, np.broadcast_to(np.asarray(expected)[:, None], out.shape))
    deep = {k: widen(flat[k], 2, flat[k].shape[-1]) if k in kernels else flat[k] for k in flat}
    volume, _ = load(UNET, deep, dims=3, **inner)
    out = golden.quick_jit(lambda: volume(rows[:, None], t))()
    golden.assert_close(out[:, 0, 0], expected)
    with pytest.raises(ValueError, match='divisible by 2'):
        volume(rows[:, None, :3], t)
    with pytest.raises(ValueError, match='5 axes'):
        volume(rows, t)


def test_resampling_leaves_the_depth_alone():
    x = draw(1, 3, 4, 6, 2)
    up, down = upsample_nearest(jnp.asarray(x)), downsample_mean(jnp.asarray(x))
    np.testing.assert_array_equal(up, x.repeat(2, 2).repeat(2, 3))
    expected = (x[:, :, ::2] + x[:, :, 1::2]) / 2
    golden.assert_close(down, (expected[:, :, :, ::2] + expected[:, :, :, 1::2]) / 2)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x[0, 0])), x[0, 0].repeat(2, 1))


def test_a_context_for_each_block():
    """Two blocks, two contexts: the same one twice is one for all, and another one is heard."""
    changes = {'transformer_depth': 2, 'channel_mult': [1], 'num_res_blocks': 0}
    changes['attention_resolutions'] = []
    unet, _ = load(UNET, context_dim=[24, 24], **changes)
    run = golden.quick_jit(lambda c: unet(draw(1, 4, 4, 3), np.array([1.0]), c))
    first, second = draw(1, 5, 24, seed=1), draw(1, 5, 24, seed=2)
    golden.assert_close(run([first, first]), run(first), 1e-6)
    assert np.abs(run([first, second]) - run(first)).max() > 1e-3


def test_linear_attention_has_no_residual():
    silent = {
        'mid.attn_1.to_out.weight': np.zeros((64, 64, 1, 1), np.float32),
        'mid.attn_1.to_out.bias': np.zeros(64, np.float32),
    }
    encoder, _ = load(ENCODER, silent, use_linear_attn=True, ch_mult=[2])
    run = golden.quick_jit(lambda x: encoder(x))
    np.testing.assert_array_equal(run(draw(1, 8, 8, 3)), run(draw(1, 8, 8, 3, seed=1)))


def test_the_ends_of_a_decoder():
    z = draw(1, 4, 4, 4)
    small = {'attn_type': 'none', 'ch_mult': [1], 'num_res_blocks': 0}
    plain, state = load(DECODER, **small)
    bounded, _ = load(DECODER, tanh_out=True, **small)
    early, _ = load(DECODER, give_pre_end=True, **small)
    out, limited, x = golden.quick_jit(lambda: (plain(z), bounded(z), early(z)))()
    golden.assert_close(limited, np.tanh(out))
    assert x.shape == (1, 4, 4, 32)
    # What is left to do: normalise 32 groups of one channel, SiLU, convolve.
    x = np.asarray(x, np.float64)
    x = (x - x.mean((1, 2))) / np.sqrt(x.var((1, 2)) + 1e-6)
    x = x * state['norm_out.weight'] + state['norm_out.bias']
    x = np.pad(x / (1 + np.exp(-x)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.moveaxis(state['conv_out.weight'], (0, 1), (-1, -2))
    expected = sum(x[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3))
    golden.assert_close(out, expected + state['conv_out.bias'])


def test_temporal_decoder_with_a_fixed_share_of_no_time():
    changes = {'merge_strategy': 'fixed', 'ch_mult': [1], 'num_res_blocks': 0}
    names = shapes(VIDEO_DECODER, **changes)
    zero = {n: np.zeros(s, np.float32) for n, s in names.items() if 'mix_factor' in n}
    first, _ = load(VIDEO_DECODER, zero, **changes)
    other = golden.parameters({n: s for n, s in names.items() if '.time_stack.' in n}, 'other')
    second, _ = load(VIDEO_DECODER, zero | other, **changes)
    z = draw(3, 2, 2, 4)
    out = golden.quick_jit(lambda: (first(z, num_frames=3), second(z, num_frames=3)))()
    golden.assert_close(out[0], out[1], 1e-6)


def test_an_engine_without_an_encoder():
    engine, _ = load(ENGINE, encoder_config=IDENTITY)
    assert engine.factor == 2
    np.testing.assert_array_equal(engine.encode(np.ones((1, 2, 2, 8))), np.ones((1, 2, 2, 8)))


def test_image_embedder_options():
    images = draw(2, 12, 6, 3)
    embed = lambda x=images, **options: load(EMBEDDER, **options)[0](x)
    z = embed()
    assert z.shape == (2, 8)
    golden.assert_close(embed(unsqueeze_dim=True), z[:, None], 1e-6)
    repeated, single = embed(repeat_to_max_len=True, max_length=5)
    golden.assert_close(repeated, np.repeat(z[:, None], 5, 1), 1e-6)
    golden.assert_close(single, z, 1e-6)
    padded, first = embed(images[None], num_image_crops=2, max_length=3)
    golden.assert_close(padded, np.stack([*z, np.zeros(8)])[None], 1e-5)
    golden.assert_close(first, z[:1], 1e-5)
    tokens, pooled = embed(output_tokens=True)
    assert tokens.shape == (2, 4, 16)
    golden.assert_close(pooled, z, 1e-5)
    assert np.abs(embed(antialias=False) - z).max() > 1e-4
    # Nothing shrinks here, so there is nothing to blur.
    small = images[:, :6]
    golden.assert_close(embed(small, antialias=False), embed(small), 1e-6)


def test_late_timesteps_are_exact_under_jit():
    """The angle of step 999 is large: frequencies are constants, and not what a compiler makes of them."""
    times = np.array([0.25, 981.0, 999.0])
    compiled = golden.quick_jit(lambda t: timestep_embedding(t, 320))(times)
    golden.assert_close(compiled, timestep_embedding(jnp.asarray(times), 320), 2e-7)
    assert timestep_embedding(jnp.asarray(times), 33).shape == (3, 33)
