"""Configurations beyond the published ones: the names that PyTorch has for them, and what is refused."""

import re

import golden
import numpy as np
import pytest

from sgm_jax.errors import UserError
from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.interop.targets import make

UNET = 'sgm.modules.diffusionmodules.openaimodel.UNetModel'
VIDEO_UNET = 'sgm.modules.diffusionmodules.video_model.VideoUNet'
ENCODER = 'sgm.modules.diffusionmodules.model.Encoder'
DECODER = 'sgm.modules.diffusionmodules.model.Decoder'
VIDEO_DECODER = 'sgm.modules.autoencoding.temporal_ae.VideoDecoder'
KL = 'sgm.models.autoencoder.AutoencoderKL'
ENGINE = 'sgm.models.autoencoder.AutoencodingEngine'
EMBEDDER = 'sgm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder'
GAUSSIAN = {'target': 'sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer'}
IDENTITY = {'target': 'torch.nn.Identity'}

CODER = {
    'attn_type': 'vanilla-xformers',
    'double_z': True,
    'z_channels': 4,
    'resolution': 16,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': [1, 2],
    'num_res_blocks': 1,
    'attn_resolutions': [],
    'dropout': 0.0,
}
BASE = {
    UNET: {
        'in_channels': 3,
        'model_channels': 32,
        'out_channels': 3,
        'num_res_blocks': 1,
        'attention_resolutions': [1, 2],
        'channel_mult': [1, 2],
        'num_head_channels': 16,
        'context_dim': 24,
    },
    VIDEO_UNET: {
        'in_channels': 4,
        'model_channels': 32,
        'out_channels': 4,
        'num_res_blocks': 1,
        'attention_resolutions': [1],
        'channel_mult': [1],
        'num_head_channels': 16,
        'context_dim': 24,
    },
    ENCODER: CODER,
    DECODER: CODER,
    VIDEO_DECODER: CODER,
    KL: {'embed_dim': 4, 'ddconfig': CODER},
    ENGINE: {
        'encoder_config': {'target': ENCODER, 'params': CODER},
        'decoder_config': {'target': DECODER, 'params': CODER},
        'regularizer_config': GAUSSIAN,
    },
    EMBEDDER: {
        'embed_dim': 8,
        'vision_cfg': {'image_size': 8, 'layers': 1, 'width': 16, 'head_width': 8, 'patch_size': 4},
        'text_cfg': {'context_length': 4, 'vocab_size': 10, 'width': 8},
    },
}
PIXELS = {'attention_resolutions': [], 'disable_middle_transformer': True, 'context_dim': None}


def shapes(target, **changes):
    """The names and shapes of a target's state dict, with some params changed."""
    module = make(target, {**BASE[target], **changes})
    return {name: x.shape for name, x in to_sgm(module).items()}


def load(target, weights=None, salt='', **changes):
    """The module with generated weights, some of them replaced; and all of them."""
    state = golden.parameters(shapes(target, **changes), salt)
    state.update(weights or {})
    return from_sgm(target, {**BASE[target], **changes}, state), state


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ('target', 'changes', 'expected'),
    [
        (UNET, {'num_classes': 7}, 'label_emb.weight=7x128'),
        (UNET, {'num_classes': 'continuous'}, 'label_emb.weight=128x1'),
        (UNET, {'num_classes': 'timestep'}, 'label_emb.1.0.weight=128x32 label_emb.1.2.bias=128'),
        (
            UNET,
            {'num_classes': 'sequential', 'adm_in_channels': 20},
            'label_emb.0.0.weight=128x20 label_emb.0.2.weight=128x128',
        ),
        (
            UNET,
            {'conv_resample': False},
            'input_blocks.2.0.op.weight=no output_blocks.1.2.conv.weight=no',
        ),
        (
            UNET,
            {'resblock_updown': True, 'use_scale_shift_norm': True},
            'input_blocks.2.0.emb_layers.1.weight=64x128 '
            'input_blocks.2.0.skip_connection.weight=no '
            'output_blocks.1.2.in_layers.2.weight=64x64x3x3',
        ),
        (
            UNET,
            {'disable_middle_transformer': True},
            'middle_block.1.norm.weight=no middle_block.2.in_layers.2.bias=64',
        ),
        (
            UNET,
            {'disable_self_attentions': [True, False], 'disable_middle_self_attn': True},
            'input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight=32x24 '
            'input_blocks.3.1.transformer_blocks.0.attn1.to_k.weight=64x64 '
            'middle_block.1.transformer_blocks.0.attn1.to_v.weight=64x24 '
            'output_blocks.3.1.transformer_blocks.0.attn1.to_v.weight=32x24',
        ),
        # At most so many blocks with attention at a level, in both directions.
        (
            UNET,
            {'num_res_blocks': [2, 1], 'num_attention_blocks': [1, 0]},
            'input_blocks.1.1.norm.weight=32 input_blocks.2.1.norm.weight=no '
            'input_blocks.4.1.norm.weight=no output_blocks.0.1.norm.weight=no '
            'output_blocks.2.1.norm.weight=32 output_blocks.3.1.norm.weight=no',
        ),
        # Heads that do not divide the channels: an inner width of their own.
        (
            UNET,
            {'num_heads': 3, 'num_head_channels': -1},
            'input_blocks.1.1.proj_in.weight=30x32x1x1 middle_block.1.proj_out.weight=64x63x1x1',
        ),
        (
            UNET,
            {'num_heads': 3, 'num_head_channels': 32, 'use_linear_in_transformer': True},
            'input_blocks.1.1.proj_in.weight=32x32',
        ),
        # One entry more than there are levels: the middle has the last.
        (
            UNET,
            {'transformer_depth': [1, 2, 3]},
            'input_blocks.3.1.transformer_blocks.2.norm1.bias=no '
            'middle_block.1.transformer_blocks.2.norm1.bias=64',
        ),
        (
            UNET,
            {'transformer_depth': [1], 'attention_resolutions': [1]},
            'input_blocks.1.1.transformer_blocks.0.norm1.bias=32 input_blocks.3.1.norm.bias=no',
        ),
        (
            UNET,
            {'transformer_depth': [1, 2], 'attention_resolutions': [2], 'context_dim': [24, 40]},
            'input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight=64x24 '
            'input_blocks.3.1.transformer_blocks.1.attn2.to_k.weight=64x40',
        ),
        (
            UNET,
            {'dims': 3, **PIXELS},
            'input_blocks.0.0.weight=32x3x3x3x3 input_blocks.2.0.op.weight=32x32x3x3x3 '
            'input_blocks.3.0.skip_connection.weight=64x32x1x1x1 out.2.weight=3x32x3x3x3',
        ),
        # The reference names the inner width, and so has these layers whatever the switch says.
        (
            VIDEO_UNET,
            {'extra_ff_mix_layer': False},
            'input_blocks.1.1.time_stack.0.norm_in.weight=32 '
            'input_blocks.1.1.time_stack.0.ff_in.net.2.weight=32x128',
        ),
        (
            VIDEO_UNET,
            {'extra_ff_mix_layer': True},
            'input_blocks.1.1.time_stack.0.norm_in.weight=32 '
            'input_blocks.1.1.time_stack.0.ff_in.net.2.weight=32x128',
        ),
        (
            VIDEO_UNET,
            {'time_context_dim': 20, 'video_kernel_size': [5, 3, 1], 'merge_strategy': 'fixed'},
            'input_blocks.1.1.time_stack.0.attn1.to_k.weight=32x32 '
            'input_blocks.1.1.time_stack.0.attn2.to_k.weight=32x20 '
            'input_blocks.1.0.time_stack.in_layers.2.weight=32x32x5x3x1 '
            'input_blocks.1.0.time_mixer.mix_factor=1',
        ),
        (
            VIDEO_UNET,
            {'context_dim': [24], 'use_scale_shift_norm': True, 'transformer_depth_middle': 2},
            'input_blocks.1.1.time_stack.0.attn2.to_k.weight=32x32 '
            'input_blocks.1.0.emb_layers.1.weight=64x128 '
            'input_blocks.1.0.time_stack.emb_layers.1.weight=32x128 '
            'middle_block.1.time_stack.1.norm1.weight=32',
        ),
        (
            VIDEO_UNET,
            {'disable_temporal_crossattention': True, 'use_spatial_context': True},
            'input_blocks.1.1.time_stack.0.attn2.to_k.weight=no '
            'input_blocks.1.1.time_stack.0.norm2.weight=no '
            'input_blocks.1.1.time_stack.0.norm3.weight=32',
        ),
        (
            ENCODER,
            {'double_z': False, 'attn_type': 'none', 'resamp_with_conv': False},
            'conv_out.weight=4x64x3x3 mid.attn_1.norm.weight=no down.0.downsample.conv.weight=no',
        ),
        (
            ENCODER,
            {'use_linear_attn': True, 'attn_type': 'vanilla'},
            'mid.attn_1.to_qkv.weight=192x64x1x1 mid.attn_1.to_qkv.bias=no',
        ),
        # A condition in the reference that never holds lets this one fall through.
        (
            ENCODER,
            {'attn_type': 'memory-efficient-cross-attn'},
            'mid.attn_1.to_qkv.weight=192x64x1x1 mid.attn_1.to_qkv.bias=no',
        ),
        (
            DECODER,
            {'use_linear_attn': True, 'attn_type': 'vanilla'},
            'mid.attn_1.to_qkv.weight=192x64x1x1 mid.attn_1.to_qkv.bias=no',
        ),
        (
            DECODER,
            {'attn_type': 'memory-efficient-cross-attn'},
            'mid.attn_1.to_qkv.weight=192x64x1x1 mid.attn_1.to_qkv.bias=no',
        ),
        # 30, 15, 7 on the way down, and 7, 14, 28 on the way up.
        (
            ENCODER,
            {'resolution': 30, 'ch_mult': [1, 2, 2], 'attn_resolutions': [14, 15]},
            'down.0.attn.0.q.weight=no down.1.attn.0.q.weight=64x64x1x1',
        ),
        (
            DECODER,
            {'resolution': 30, 'ch_mult': [1, 2, 2], 'attn_resolutions': [15]},
            'up.1.attn.0.q.weight=no',
        ),
        (
            DECODER,
            {'resolution': 30, 'ch_mult': [1, 2, 2], 'attn_resolutions': [14]},
            'up.1.attn.1.q.weight=64x64x1x1',
        ),
        (
            VIDEO_DECODER,
            {'merge_strategy': 'fixed', 'alpha': 0.3},
            'mid.block_1.mix_factor=1 mid.block_1.time_stack.in_layers.2.weight=64x64x3x3x3 '
            'mid.block_1.time_stack.emb_layers.1.weight=no '
            'conv_out.time_mix_conv.weight=3x3x3x3x3',
        ),
        (
            KL,
            {
                'embed_dim': 6,
                'ddconfig': {
                    'attn_type': 'vanilla-xformers',
                    'double_z': False,
                    'z_channels': 4,
                    'resolution': 16,
                    'in_channels': 3,
                    'out_ch': 3,
                    'ch': 32,
                    'ch_mult': [1, 2],
                    'num_res_blocks': 1,
                    'attn_resolutions': [],
                    'dropout': 0.0,
                    'tanh_out': True,
                },
            },
            'quant_conv.weight=6x4x1x1 post_quant_conv.weight=4x6x1x1',
        ),
        (KL, {'embed_dim': 3}, 'quant_conv.weight=6x8x1x1'),
        (
            ENGINE,
            {'encoder_config': IDENTITY},
            'encoder.conv_in.weight=no decoder.conv_in.weight=64x4x3x3',
        ),
    ],
)
def test_names_and_shapes(target, changes, expected):
    """Of some names: their shapes, or that there is no such weight."""
    found = shapes(target, **changes)
    for entry in expected.split():
        name, size = entry.split('=')
        wanted = None if size == 'no' else tuple(int(n) for n in size.split('x'))
        assert found.get(name) == wanted, name


@pytest.mark.parametrize(
    ('target', 'run'),
    [
        (
            UNET,
            {
                'use_checkpoint': True,
                'use_fp16': True,
                'legacy': False,
                'use_spatial_transformer': True,
                'spatial_transformer_attn_type': 'softmax-xformers',
                'num_heads_upsample': 2,
                'dims': 2,
                'dropout': 0.1,
            },
        ),
        (VIDEO_UNET, {'time_downup': True, 'use_checkpoint': True, 'extra_ff_mix_layer': True}),
        (ENCODER, {'give_pre_end': True, 'tanh_out': True, 'video_kernel_size': [3, 1, 1]}),
        (
            KL,
            {
                'ckpt_path': 'vae.safetensors',
                'monitor': 'val/rec_loss',
                'input_key': 'jpg',
                'ema_decay': 0.999,
                'max_batch_size': 2,
                'lossconfig': IDENTITY,
            },
        ),
        (
            ENGINE,
            {
                'loss_config': IDENTITY,
                'optimizer_config': {'target': 'torch.optim.AdamW'},
                'disc_start_iter': 0,
                'trainable_ae_params': [['decoder.*']],
                'additional_decode_keys': ['timesteps'],
                'lr_g_factor': 0.5,
            },
        ),
        (EMBEDDER, {'freeze': True, 'device': 'cuda', 'version': 'laion2b_s32b_b79k'}),
    ],
)
def test_params_of_a_run_leave_the_weights_alone(target, run):
    assert shapes(target, **run) == shapes(target)


@pytest.mark.parametrize(
    ('target', 'changes', 'said'),
    [
        (UNET, {'chanel_mult': [1]}, "'chanel_mult'; did you mean 'channel_mult'"),
        (UNET, {'transformer_depth_middle': 1}, 'transformer_depth_middle'),
        (UNET, {'dims': 3}, 'attention_resolutions'),
        (UNET, {'dims': 4, **PIXELS}, 'got 4'),
        (UNET, {'num_attention_blocks': [1, 2]}, 'num_attention_blocks asks for 2 at level 1'),
        (UNET, {'num_attention_blocks': [1]}, 'num_attention_blocks has 1 entries'),
        (UNET, {'disable_self_attentions': [True]}, 'disable_self_attentions has 1 entries'),
        (UNET, {'num_res_blocks': [1, 1, 1]}, 'num_res_blocks has 3 entries'),
        (UNET, {'transformer_depth': [1]}, 'transformer_depth has 1 entries'),
        (UNET, {'context_dim': [24, 40]}, r'context_dim \[24, 40\]'),
        (UNET, {'num_classes': 'sequential'}, 'adm_in_channels'),
        (UNET, {'num_classes': 'binary'}, 'binary'),
        (UNET, {'num_head_channels': -1}, 'num_heads'),
        (UNET, {'spatial_transformer_attn_type': 'flash'}, 'flash'),
        (UNET, {'use_spatial_transformer': False}, 'use_spatial_transformer'),
        (VIDEO_UNET, {'merge_strategy': 'mixed'}, 'mixed'),
        (VIDEO_UNET, {'dims': 3}, 'dims'),
        (ENCODER, {'attn_type': 'cosine'}, 'cosine'),
        (DECODER, {'tanhout': True}, "'tanhout'; did you mean 'tanh_out'"),
        (VIDEO_DECODER, {'video_kernel': 3}, 'VideoDecoder: unknown key'),
        (VIDEO_DECODER, {'merge_strategy': 'learned_with_images'}, 'learned_with_images'),
        (VIDEO_DECODER, {'time_mode': 'all', 'attn_type': 'linear'}, 'attn_type'),
        (VIDEO_DECODER, {'time_mode': 'some'}, 'time_mode'),
        (KL, {'embeddim': 4}, "'embeddim'; did you mean 'embed_dim'"),
        (KL, {'ddconfig': {**CODER, 'zchannels': 4}}, 'zchannels'),
        (ENGINE, {'decoder': IDENTITY}, "unknown key 'decoder'"),
        (ENGINE, {'regularizer_config': {'target': 'mine.Regularizer'}}, 'mine.Regularizer'),
        (ENGINE, {'decoder_config': {'target': 'mine.Decoder'}}, 'mine.Decoder'),
        (EMBEDDER, {'antialiased': True}, "'antialiased'; did you mean 'antialias'"),
        (EMBEDDER, {'output_tokens': True, 'repeat_to_max_len': True}, 'output_tokens'),
    ],
)
def test_bad_params_are_errors(target, changes, said):
    with pytest.raises(ValueError, match=said):
        shapes(target, **changes)


@pytest.mark.parametrize(
    ('target', 'name'),
    [(KL, 'embed_dim'), (ENGINE, 'decoder_config'), (VIDEO_DECODER, 'ch'), (UNET, 'in_channels')],
)
def test_missing_params_are_errors(target, name):
    params = {k: v for k, v in BASE[target].items() if k != name}
    with pytest.raises(UserError, match=re.escape(f'missing {name!r}')):
        make(target, params)
