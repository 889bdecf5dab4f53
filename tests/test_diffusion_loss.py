"""The loss: shapes and shares of its noise, and its kinds on numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgm_jax import diffusion
from sgm_jax.diffusion.loss import StandardDiffusionLoss
from sgm_jax.errors import UserError


def make(**options):
    node = {'name': 'standard', 'sigma_sampling': {'name': 'edm'}, 'weighting': {'name': 'v'}}
    return diffusion.make('loss', {**node, **options})


def test_images_have_a_sigma_each():
    sigma, noise = make().draw(jax.random.key(0), jnp.zeros((4, 8, 8, 3)))
    assert sigma.shape == (4,)
    assert len(set(sigma.tolist())) == 4
    assert noise.shape == (4, 8, 8, 3)
    assert abs(noise.std() - 1) < 0.1


def test_the_frames_of_a_clip_share_a_sigma_but_no_noise():
    sigma, noise = make().draw(jax.random.key(0), jnp.zeros((6, 8, 8, 3)), num_frames=3)
    assert sigma[:3].tolist() == [sigma[0]] * 3
    assert sigma[3:].tolist() == [sigma[3]] * 3
    assert sigma[0] != sigma[3]
    assert not np.allclose(noise[0], noise[1])


@pytest.mark.parametrize(('frames', 'values'), [(None, 6), (3, 2)])
def test_offset_noise_is_one_value_per_channel_of_a_sample_or_clip(frames, values):
    key, x = jax.random.key(1), jnp.zeros((6, 8, 8, 3))
    sigma, plain = make().draw(key, x, frames)
    same_sigma, raised = make(offset_noise_level=0.5).draw(key, x, frames)
    np.testing.assert_array_equal(sigma, same_sigma)
    offset = np.asarray(raised - plain)
    assert offset.shape == (6, 8, 8, 3)
    np.testing.assert_allclose(np.ptp(offset, axis=(1, 2)), 0, atol=1e-5)
    assert len(np.unique(offset[:, 0, 0].round(4), axis=0)) == values
    assert len(np.unique(offset[0, 0, 0].round(4))) == 3
    if frames:
        np.testing.assert_allclose(offset[0, 0, 0], offset[2, 0, 0], atol=1e-5)


def test_part_of_a_clip_is_an_error():
    with pytest.raises(UserError, match='5 frames is not a whole number of clips of 3'):
        make().draw(jax.random.key(0), jnp.zeros((5, 2, 2, 1)), num_frames=3)


# sigma 1 and 2 weigh 1 + 1/sigma^2 = 2 and 1.25; the differences are (1, 3) and (-2, 0).
@pytest.mark.parametrize(('kind', 'want'), [('l2', [2 * 5, 1.25 * 2]), ('l1', [2 * 2, 1.25 * 1])])
def test_kinds_by_hand(kind, want):
    x = jnp.array([[[[1.0, 2.0]]], [[[5.0, 7.0]]]])
    denoised = x + jnp.array([[[[1.0, 3.0]]], [[[-2.0, 0.0]]]])
    got = make(kind=kind).per_sample(denoised, x, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_lpips_is_a_function_of_the_caller_and_has_no_weights():
    loss, x, sigma = make(kind='lpips'), jnp.zeros((2, 2, 2, 1)), jnp.array([1.0, 2.0])
    perceptual = lambda a, b: (a - b).sum(axis=(1, 2, 3), keepdims=True)
    got = loss.per_sample(x + 0.5, x, sigma, perceptual)
    np.testing.assert_allclose(got, [2.0, 2.0])
    with pytest.raises(UserError, match='perceptual'):
        loss.per_sample(x, x, sigma)


def test_an_unknown_kind_lists_the_choices():
    with pytest.raises(UserError, match="'l3'; choose one of: l2, l1, lpips"):
        make(kind='l3')


def test_given_sigma_and_noise_need_no_key():
    x = jnp.array([[1.0], [2.0]]).reshape(2, 1, 1, 1)
    noise, sigma = jnp.ones_like(x), jnp.array([1.0, 2.0])
    denoise = lambda noisy, sigma, cond: noisy - cond
    # Noisy x is 2 and 4; less cond = 1 the denoised are 1 and 3, off by 0 and 1, which weighs 1.25.
    loss, same = make()(None, denoise, x, 1.0, sigma=sigma, noise=noise)
    np.testing.assert_allclose(loss, [0, 1.25], rtol=1e-6)
    np.testing.assert_array_equal(same, sigma)


def test_a_call_is_what_was_drawn_and_compared():
    loss, key = make(offset_noise_level=0.1), jax.random.key(3)
    x = jax.random.normal(jax.random.key(4), (4, 2, 2, 3)).astype(jnp.bfloat16)
    perfect = lambda noisy, sigma, cond: cond
    run = jax.jit(lambda key, cond: loss(key, perfect, x, cond, num_frames=2))
    got, sigma = run(key, x)
    assert got.tolist() == [0] * 4
    assert got.dtype == sigma.dtype == jnp.float32
    np.testing.assert_allclose(sigma, loss.draw(key, x, 2)[0], rtol=1e-5)
    assert isinstance(loss, StandardDiffusionLoss)
