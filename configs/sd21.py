"""Stable Diffusion 2.1: pictures of 512x512 or 768x768 from prompts.

  python sample.py --checkpoint v2-1_512-ema-pruned.safetensors --prompt 'a red fox' --output fox.png
  python sample.py --config configs/sd21.py:768v --checkpoint v2-1_768-ema-pruned.safetensors \
      --prompt 'a red fox' --output fox.png

Variants: '' (512x512, predicts the noise), '768v' (768x768, predicts v), and 'tiny' (32x32 pixels, for a
CPU). The two published files have the same tensors: name the variant for 768-v.

Networks, scalings and the text encoder follow sgm's sd_2_1.yaml and sd_2_1_768.yaml. Training drops the
prompt of 10% of the pictures by giving the empty one, which is what the unconditional pass is told.
"""

import ml_collections

from sgm_jax.config import check_variant

VARIANTS = ('', '768v', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    size, predicts = (768, 'v') if variant == '768v' else (512, 'eps')
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'diffusion',
        'checkpoint': '',
        'first_stage_checkpoint': '',
        'from_scratch': False,
        'scale_factor': 0.18215,
        'encode_chunk': 1,
        'network': {
            'name': 'unet',
            'in_channels': 4,
            'out_channels': 4,
            'model_channels': 320,
            'attention_resolutions': (4, 2, 1),
            'num_res_blocks': 2,
            'channel_mult': (1, 2, 4, 4),
            'num_head_channels': 64,
            'use_linear_in_transformer': True,
            'transformer_depth': 1,
            'context_dim': 1024,
            'remat': 'block',
            'use_scale_shift_norm': False,
            'dtype': 'auto',  # bfloat16 on accelerators
            'attention': 'auto',
        },
        'denoiser': {'name': 'discrete', 'scaling': {'name': predicts}},
        'loss': {
            'name': 'standard',
            'sigma_sampling': {'name': 'discrete'},
            'weighting': {'name': predicts},
        },
        'task': {'name': 'images'},
        'conditioner': (
            {
                'name': 'open_clip_text',
                'input_key': 'txt',
                'arch': 'ViT-H-14',
                'layer': 'penultimate',
                'ucg_rate': 0.1,
                'legacy_ucg_value': '',
                'dtype': 'auto',
            },
        ),
        'first_stage': {
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
        },
    }
    config.data = {
        'name': 'captioned_pictures',
        'path': '',
        'height': size,
        'width': size,
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
        'checkpoint_every': 1000,
        'keep': 3,
    }
    config.mesh = {'data': 1, 'fsdp': -1, 'context': 1}
    config.sample = {
        'sampler': {'name': 'euler_edm'},
        'discretization': {'name': 'legacy_ddpm'},
        'guider': {'name': 'vanilla_cfg', 'scale': 7.5},
        'steps': 40,
        'height': size,
        'width': size,
        'decode_chunk': 1,
    }
    if variant == 'tiny':
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    """The same model with fewer of everything, on pixels and on the pictures inside installed packages."""
    width = 32
    text = config.model.conditioner[0]
    arch = {
        'embed_dim': width,
        'text_cfg': {
            'context_length': 77,
            'vocab_size': 49408,
            'width': width,
            'heads': 2,
            'layers': 2,
        },
    }
    # No weights to load: the small encoder is trained along.
    config.model.conditioner = ({**text, 'arch': arch, 'is_trainable': True},)
    config.model.first_stage = {'name': 'none'}
    config.model.encode_chunk = 0
    config.model.scale_factor = 1.0
    config.model.network.update(
        in_channels=3,
        out_channels=3,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_head_channels=16,
        context_dim=width,
        remat='none',
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
    )
    config.mesh.update(data=-1, fsdp=1)
    config.sample.update(steps=20, height=32, width=32, decode_chunk=0)
