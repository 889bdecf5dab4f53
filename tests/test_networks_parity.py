"""Networks against the PyTorch reference: same generated weights, same inputs."""

import golden
import jax.numpy as jnp
import numpy as np
import pytest

from sgm_jax.interop import from_sgm, to_sgm

UNET = 'sgm.modules.diffusionmodules.openaimodel.UNetModel'
VIDEO_UNET = 'sgm.modules.diffusionmodules.video_model.VideoUNet'
ENCODER = 'sgm.modules.diffusionmodules.model.Encoder'
DECODER = 'sgm.modules.diffusionmodules.model.Decoder'
VIDEO_DECODER = 'sgm.modules.autoencoding.temporal_ae.VideoDecoder'
AUTOENCODER_KL = 'sgm.models.autoencoder.AutoencoderKL'


def assert_returns(module, state_dict):
    """to_sgm gives back what from_sgm took, bit for bit."""
    returned = to_sgm(module)
    assert returned.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(returned[name], array, err_msg=name)
        assert returned[name].dtype == array.dtype


@pytest.mark.parametrize(
    'case',
    ['unet_sdxl', 'unet_sd21', 'unet_conv_proj', 'unet_pixel_class', 'unet_scale_shift_updown'],
)
def test_unet(case):
    state_dict = golden.state_dict(case)
    unet = from_sgm(UNET, golden.config(case), state_dict)
    inputs, outputs = golden.arrays(case)
    out = golden.quick_jit(lambda x, t, context, y: unet(x, t, context, y))(
        golden.last(inputs['x']), inputs['timesteps'], inputs.get('context'), inputs.get('y')
    )
    golden.assert_close(out, golden.last(outputs['out']))
    assert_returns(unet, state_dict)


@pytest.mark.parametrize('case', ['video_unet_svd', 'video_unet_learned'])
def test_video_unet(case):
    config = golden.config(case)
    frames = config.pop('num_video_frames', None) or 4
    state_dict = golden.state_dict(case)
    unet = from_sgm(VIDEO_UNET, config, state_dict)
    inputs, outputs = golden.arrays(case)
    indicators = {
        'video': np.zeros((2, frames)),
        'mixed': np.eye(2, frames),
        'image': np.ones((2, frames)),
    }
    run = golden.quick_jit(
        lambda indicator: unet(
            golden.last(inputs['x']),
            inputs['timesteps'],
            inputs['context'],
            inputs['y'],
            num_frames=frames,
            image_only_indicator=indicator,
        )
    )
    for name, indicator in indicators.items():
        golden.assert_close(run(indicator), golden.last(outputs[name]))
    golden.assert_close(run(None), golden.last(outputs['video']))
    assert_returns(unet, state_dict)


def test_autoencoder_kl():
    state_dict = golden.state_dict('autoencoder_kl')
    model = from_sgm(AUTOENCODER_KL, golden.config('autoencoder_kl'), state_dict)
    from sgm_jax.networks.regularizers import DiagonalGaussian

    inputs, outputs = golden.arrays('autoencoder_kl')
    moments = golden.quick_jit(lambda x: model.encode(x))(golden.last(inputs['x']))
    golden.assert_close(moments, golden.last(outputs['moments']))
    posterior = DiagonalGaussian.of(moments)
    golden.assert_close(posterior.mode(), golden.last(outputs['mode']))
    golden.assert_close(posterior.kl(), outputs['kl'])
    decoded = golden.quick_jit(lambda z: model.decode(z))(posterior.mode())
    golden.assert_close(decoded, golden.last(outputs['rec_of_mode']))
    assert_returns(model, state_dict)


@pytest.mark.parametrize('case', ['encoder_decoder_attn_levels', 'encoder_decoder_attn_free'])
def test_encoder_and_decoder(case):
    config = golden.config(case)
    parts = golden.cases()['cases'][case]['shapes']
    encoder_name, decoder_name = sorted(parts, key=lambda part: 'dec' in part)
    encoder_weights = golden.state_dict(case, encoder_name, 'enc')
    decoder_weights = golden.state_dict(case, decoder_name, 'dec')
    encoder = from_sgm(ENCODER, config, encoder_weights)
    decoder = from_sgm(DECODER, config, decoder_weights)
    inputs, outputs = golden.arrays(case)
    h = golden.quick_jit(lambda x: encoder(x))(golden.last(inputs['x']))
    golden.assert_close(h, golden.last(outputs['h']))
    rec = golden.quick_jit(lambda z: decoder(z))(h[..., :4])
    golden.assert_close(rec, golden.last(outputs['rec']))
    assert_returns(encoder, encoder_weights)
    assert_returns(decoder, decoder_weights)


def test_video_decoder():
    state_dict = golden.state_dict('video_decoder_conv_only')
    config = golden.config('video_decoder_conv_only')
    decoder = from_sgm(VIDEO_DECODER, config, state_dict)
    inputs, outputs = golden.arrays('video_decoder_conv_only')
    out = golden.quick_jit(lambda z: decoder(z, num_frames=config['timesteps']))(
        golden.last(inputs['z'])
    )
    golden.assert_close(out, golden.last(outputs['out']))
    assert_returns(decoder, state_dict)


def test_open_clip_image_tower():
    state_dict = golden.state_dict('open_clip')
    # The reference keeps the ends of the text tower, and this case's file has its middle too.
    kept = {
        f'model.{name}': x for name, x in state_dict.items() if not name.startswith('transformer.')
    }
    target = 'sgm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder'
    embedder = from_sgm(target, golden.config('open_clip'), kept)
    inputs, outputs = golden.arrays('open_clip')
    out = golden.quick_jit(lambda x: embedder.model.visual(x))(golden.last(inputs['image']))
    golden.assert_close(out, outputs['image_embedding'])
    assert_returns(embedder, kept)


def test_clip_preprocess_resizes_as_the_reference():
    from sgm_jax.networks.clip import resize_antialiased

    inputs, outputs = golden.arrays('clip_preprocess')
    size = golden.config('clip_preprocess')['size']
    resized = resize_antialiased(jnp.asarray(golden.last(inputs['image'])), size)
    golden.assert_close(resized, golden.last(outputs['resized']))
