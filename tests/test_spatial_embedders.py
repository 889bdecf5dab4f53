"""Embedders of pictures as maps and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sgm_jax.conditioning.spatial import SpatialRescaler, resize
from sgm_jax.engines.conditioners import build_conditioner
from sgm_jax.errors import UserError
from sgm_jax.networks.layers import Keys

# torch.nn.functional.interpolate(x, scale_factor, mode) of PyTorch 2.13 for x = sin(1.7 i), i = 0..29, as
# (1, 1, 5, 6): the result's size, and every (n // 6)th of its n values.
TORCH = {
    ('nearest', 0.5): [0.0, -0.255541, 0.494114, 0.999793, -0.971798, 0.879273],
    ('nearest', 2.0): [0.0, 0.494114, 0.859162, 0.999793, -0.29467, 0.215988],
    ('bilinear', 0.5): [-0.081587, 0.018637, 0.045551, 0.234031, -0.248331, 0.246141],
    ('bilinear', 2.0): [0.0, -0.051117, 0.178376, 0.567755, -0.14901, 0.082263],
    ('bicubic', 0.5): [-0.216498, 0.151198, -0.033875, 0.469757, -0.580671, 0.491794],
    ('bicubic', 2.0): [-0.040896, -0.141314, 0.214532, 0.818845, -0.257881, 0.107452],
    ('area', 0.5): [0.094135, -0.089699, 0.079306, -0.003212, 0.027182, -0.049347],
    ('area', 2.0): [0.0, 0.494114, 0.859162, 0.999793, -0.29467, 0.215988],
}
CODER = {
    'z_channels': 2,
    'resolution': 8,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': (1, 1),
    'num_res_blocks': 1,
    'attn_resolutions': (),
    'attn_type': 'none',
}


@pytest.mark.parametrize(('method', 'scale'), TORCH)
def test_resizing_is_torchs(method, scale):
    x = np.sin(1.7 * np.arange(30, dtype=np.float32)).reshape(1, 5, 6, 1)
    got = np.asarray(resize(jnp.asarray(x), scale, method))
    assert got.shape == (1, int(5 * scale), int(6 * scale), 1)
    flat = got.ravel()
    np.testing.assert_allclose(flat[:: flat.size // 6], TORCH[method, scale], atol=3e-6)


def test_a_rescaler_shrinks_in_stages_and_maps_channels():
    rescaler = SpatialRescaler(n_stages=2, out_channels=5, wrap_video=True, rngs=Keys(0))
    clips = jnp.ones((2, 3, 16, 8, 3))
    assert rescaler(clips).shape == (6, 4, 2, 5)
    with pytest.raises(ValueError, match="unknown method 'lanczos'"):
        SpatialRescaler(method='lanczos', rngs=Keys(0))


def test_a_low_scale_encoder_tells_its_noise():
    node = {
        'name': 'low_scale',
        'input_key': 'lr',
        'model': {'name': 'autoencoder_kl', 'embed_dim': 2, 'ddconfig': CODER},
        'linear_start': 0.0001,
        'linear_end': 0.02,
        'max_noise_level': 250,
        'output_size': 8,
    }
    conditioner = build_conditioner((node,), Keys(0))
    batch = {'lr': jax.random.normal(jax.random.key(1), (64, 8, 8, 3))}
    run = jax.jit(lambda batch, key: conditioner(batch, key=key))
    sampled, drawn = conditioner(batch), run(batch, jax.random.key(0))
    assert drawn['concat'].shape == (64, 8, 8, 2)
    levels = np.asarray(drawn['vector'][:, 0])
    assert levels.min() >= 0
    assert 150 < levels.max() < 250
    assert (np.asarray(sampled['vector']) == 0).all()


def test_the_noise_of_a_level_is_the_schedules():
    node = {
        'name': 'low_scale',
        'input_key': 'lr',
        'model': {'name': 'autoencoder_kl', 'embed_dim': 2, 'ddconfig': CODER},
        # Equal betas, so that level n keeps 0.9^(n + 1) of the variance; and no latents, only noise.
        'linear_start': 0.1,
        'linear_end': 0.1,
        'max_noise_level': 3,
        'output_size': 32,
        'scale_factor': 0.0,
    }
    conditioner = build_conditioner((node,), Keys(0))
    out = jax.jit(lambda key: conditioner({'lr': jnp.ones((300, 8, 8, 3))}, key=key))(
        jax.random.key(0)
    )
    levels = np.asarray(out['vector'][:, 0])
    for level in range(3):
        noise = np.asarray(out['concat'])[levels == level]
        assert noise.shape[1:] == (32, 32, 2)
        assert noise.var() == pytest.approx(1 - 0.9 ** (level + 1), rel=0.1)


def test_a_gaussian_encoder_gives_tokens():
    node = {'name': 'gaussian', 'input_key': 'jpg', 'ddconfig': CODER}
    conditioner = build_conditioner((node, {**node, 'flatten_output': False}), Keys(0))
    batch = {'jpg': jax.random.normal(jax.random.key(1), (2, 8, 8, 3))}
    out = conditioner(batch)
    assert out['crossattn'].shape == (2, 16, 2)
    assert out['concat'].shape == (2, 4, 4, 2)
    drawn = conditioner(batch, key=jax.random.key(3))['crossattn']
    assert not np.allclose(drawn, out['crossattn'])
    names = [
        '.'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(conditioner)) if path
    ]
    assert any('encoder.conv_in' in name for name in names)


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r'conditioner\[0\]: unknown method .cubic.'):
        build_conditioner(
            ({'name': 'spatial_rescaler', 'input_key': 'x', 'method': 'cubic'},), Keys(0)
        )
