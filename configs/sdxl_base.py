"""SDXL base: pictures of about a megapixel from prompts.

  python sample.py --checkpoint sd_xl_base_1.0.safetensors --prompt 'a red fox in the snow' --output fox.png
  python train.py --config configs/sdxl_base.py --workdir runs/sdxl \
      --config.model.checkpoint=sd_xl_base_1.0.safetensors --config.data.path=/pictures

Variants: '' (1024x1024, as sd_xl_base_1.0.safetensors) and 'tiny' (32x32 pixels, without a first stage, for a
CPU: a minute on the pictures that installed packages ship, told their file names).

Networks, scalings, sampler and guidance follow sgm's sd_xl_base.yaml and its sampling demo (40 steps,
guidance 5). sgm has no training config for SDXL; training follows the paper (arXiv:2307.01952, sections 2.2
and 2.5): discrete noise levels, offset noise of 0.05, the sizes that the network is told. The prompt is
dropped for 10% of the pictures, from both text encoders by one coin, because the unconditional pass sees
zeros for both.

With model.checkpoint the frozen parts (first stage, text encoders) and the network's start come from the
file; model.from_scratch=True keeps the network's random start. Captions: picture.txt beside picture.jpg.
"""

import ml_collections

from sgm_jax.config import check_variant

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'diffusion',
        'checkpoint': '',
        'first_stage_checkpoint': '',
        'from_scratch': False,
        'scale_factor': 0.13025,
        'encode_chunk': 1,
        'network': {
            'name': 'unet',
            'in_channels': 4,
            'out_channels': 4,
            'model_channels': 320,
            'attention_resolutions': (4, 2),
            'num_res_blocks': 2,
            'channel_mult': (1, 2, 4),
            'num_head_channels': 64,
            'num_classes': 'sequential',
            'adm_in_channels': 2816,
            'use_linear_in_transformer': True,
            'transformer_depth': (1, 2, 10),
            'context_dim': 2048,
            'remat': 'layer',
            'scan': True,  # in training: its 70 blocks compile as 11
            'use_scale_shift_norm': False,
            'dtype': 'auto',  # bfloat16 on accelerators
            'attention': 'auto',
        },
        'denoiser': {'name': 'discrete', 'scaling': {'name': 'eps'}},
        'loss': {
            'name': 'standard',
            'sigma_sampling': {'name': 'discrete'},
            'weighting': {'name': 'eps'},
            'offset_noise_level': 0.05,
        },
        'task': {'name': 'images'},
        'conditioner': _conditioner(),
        'first_stage': _first_stage(),
    }
    config.data = {
        'name': 'captioned_pictures',
        'path': '',
        'height': 1024,
        'width': 1024,
        'text': 'sidecar',
        'buckets': (),  # ('sdxl',) for pictures of all shapes
        'max_damaged': 0.01,
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 1e-5,
        'weight_decay': 0.01,
        'b1': 0.9,
        'b2': 0.999,
        'eps': 1e-8,
    }
    config.schedule = {'name': 'constant', 'warmup_steps': 1000}
    config.train = {
        'batch_size': 64,
        'steps': 100_000,
        'accumulate': 1,
        'clip_norm': 1.0,
        'ema_decay': 0.9999,
        'log_every': 50,
        'image_every': 1000,
        # Each host looks at them alone.
        'validate_batch': 4,
        'checkpoint_every': 1000,
        'keep': 3,
    }
    config.mesh = {'data': 1, 'fsdp': -1, 'context': 1}
    config.sample = {
        'sampler': {'name': 'euler_edm'},
        'discretization': {'name': 'legacy_ddpm'},
        'guider': {'name': 'vanilla_cfg', 'scale': 5.0},
        'zero': ('txt',),
        'steps': 40,
        'height': 1024,
        'width': 1024,
        'decode_chunk': 1,
    }
    if variant == 'tiny':
        _shrink(config)
    return config


def _conditioner() -> tuple[dict, ...]:
    size = lambda key, outdim=256: {'name': 'concat_timestep', 'input_key': key, 'outdim': outdim}
    text = {'input_key': 'txt', 'ucg_rate': 0.1, 'ucg_group': 'text', 'dtype': 'auto'}
    return (
        {
            'name': 'clip_text',
            'arch': 'clip-vit-large-patch14',
            'layer': 'hidden',
            'layer_idx': 11,
            **text,
        },
        {
            'name': 'open_clip_text',
            'arch': 'ViT-bigG-14',
            'layer': 'penultimate',
            'always_return_pooled': True,
            'legacy': False,
            **text,
        },
        size('original_size_as_tuple'),
        size('crop_coords_top_left'),
        size('target_size_as_tuple'),
    )


def _first_stage() -> dict:
    return {
        'name': 'autoencoder_kl',
        'embed_dim': 4,
        'ddconfig': {
            'attn_type': 'vanilla',
            'double_z': True,
            'z_channels': 4,
            'resolution': 256,
            'in_channels': 3,
            'out_ch': 3,
            'ch': 128,
            'ch_mult': (1, 2, 4, 4),
            'num_res_blocks': 2,
            'attn_resolutions': (),
            'dropout': 0.0,
        },
    }


def _shrink(config: ml_collections.ConfigDict) -> None:
    """The same model with fewer of everything, on pixels and on the pictures inside installed packages."""
    clip, open_clip, *sizes = config.model.conditioner
    width = 32
    # No weights to load: the small encoders are trained along.
    config.model.conditioner = (
        {
            **clip,
            'arch': {
                'vocab_size': 49408,
                'hidden_size': width,
                'intermediate_size': 2 * width,
                'num_hidden_layers': 2,
                'num_attention_heads': 2,
            },
            'layer_idx': 1,
            'is_trainable': True,
        },
        {
            **open_clip,
            'arch': {
                'embed_dim': width,
                'text_cfg': {
                    'context_length': 77,
                    'vocab_size': 49408,
                    'width': width,
                    'heads': 2,
                    'layers': 2,
                },
            },
            'is_trainable': True,
        },
        *({**size, 'outdim': 16} for size in sizes),
    )
    config.model.first_stage = {'name': 'none'}
    config.model.encode_chunk = 0
    config.model.scale_factor = 1.0
    config.model.loss.offset_noise_level = 0.0
    config.model.network.update(
        in_channels=3,
        out_channels=3,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        transformer_depth=(1, 1),
        num_head_channels=16,
        adm_in_channels=width + 6 * 16,
        context_dim=2 * width,
        remat='none',
        scan=False,
        # With 32 channels each of GroupNorm's 32 groups is one channel, and takes away what is added to it.
        use_scale_shift_norm=True,
    )
    config.data.update(
        path='demo', height=32, width=32, text='name', repeat=64, held_out_fraction=0.1
    )
    config.optimizer.update(learning_rate=2e-3, b2=0.99)
    config.schedule = {'name': 'cosine', 'warmup_steps': 20}
    config.train.update(
        batch_size=8,
        steps=200,
        ema_decay=0.98,
        log_every=20,
        image_every=200,
        checkpoint_every=100,
        validate_batch=0,
    )
    config.mesh.update(data=-1, fsdp=1)
    config.sample.update(steps=20, height=32, width=32, decode_chunk=0)
