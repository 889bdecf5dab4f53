"""A class-conditional latent diffusion model of ImageNet at 256x256.

  python train.py --config configs/imagenet_f8.py --workdir runs/imagenet \
      --config.model.first_stage_checkpoint=sdxl_vae.safetensors --config.data.path=/imagenet/train

Variants: '' and 'tiny' (the digits inside scikit-learn at 16x16, for a CPU).

The recipe is sgm's example_training/imagenet-f8_cond.yaml: the class as one token that is trained along,
the original size and the crop as numbers, each left out for 20% of the pictures, batch 64, learning rate
1e-4 after 10000 steps of warm-up. data.path has a folder for each class (n01440764/picture.JPEG).
"""

import ml_collections

from sgm_jax.config import check_variant

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    config = ml_collections.ConfigDict()
    config.seed = 0
    size = lambda key: {
        'name': 'concat_timestep',
        'input_key': key,
        'outdim': 256,
        'ucg_rate': 0.2,
    }
    config.model = {
        'name': 'diffusion',
        'checkpoint': '',
        'first_stage_checkpoint': '',
        'from_scratch': False,
        'scale_factor': 0.13025,
        'network': {
            'name': 'unet',
            'in_channels': 4,
            'out_channels': 4,
            'model_channels': 256,
            'attention_resolutions': (1, 2, 4),
            'num_res_blocks': 2,
            'channel_mult': (1, 2, 4),
            'num_head_channels': 64,
            'num_classes': 'sequential',
            'adm_in_channels': 1024,
            'transformer_depth': 1,
            'context_dim': 1024,
            'remat': 'block',
            'dtype': 'auto',  # bfloat16 on accelerators
            'attention': 'auto',
        },
        'denoiser': {'name': 'discrete', 'scaling': {'name': 'eps'}},
        'loss': {
            'name': 'standard',
            'sigma_sampling': {'name': 'discrete'},
            'weighting': {'name': 'eps'},
        },
        'task': {'name': 'images'},
        'conditioner': (
            {
                'name': 'class',
                'input_key': 'cls',
                'embed_dim': 1024,
                'n_classes': 1000,
                'add_sequence_dim': True,
                'ucg_rate': 0.2,
                'is_trainable': True,
            },
            size('original_size_as_tuple'),
            size('crop_coords_top_left'),
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
        'height': 256,
        'width': 256,
        'text': 'none',
        'classes': True,
        'max_damaged': 0.01,
    }
    config.optimizer = {'name': 'adamw', 'learning_rate': 1e-4, 'weight_decay': 0.01}
    config.schedule = {'name': 'constant', 'warmup_steps': 10_000}
    config.train = {
        'batch_size': 64,
        'steps': 1_000_000,
        'ema_decay': 0.9999,
        'log_every': 50,
        'image_every': 1000,
        'checkpoint_every': 5000,
        'keep': 3,
    }
    config.mesh = {'data': -1, 'fsdp': 1, 'context': 1}
    config.sample = {
        'sampler': {'name': 'euler_edm'},
        'discretization': {'name': 'legacy_ddpm'},
        'guider': {'name': 'vanilla_cfg', 'scale': 5.0},
        'zero': ('cls',),
        'steps': 50,
        'height': 256,
        'width': 256,
    }
    if variant == 'tiny':
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    """The same model with fewer of everything, of handwritten digits, which have no sizes to tell."""
    token = config.model.conditioner[0]
    config.model.conditioner = ({**token, 'embed_dim': 32, 'n_classes': 10},)
    config.model.first_stage = {'name': 'none'}
    config.model.scale_factor = 1.0
    config.model.network.update(
        in_channels=1,
        out_channels=1,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        num_head_channels=16,
        num_classes=None,
        adm_in_channels=None,
        context_dim=32,
        remat='none',
        # With 32 channels each of GroupNorm's 32 groups is one channel, and takes away what is added to it.
        use_scale_shift_norm=True,
    )
    config.data = {'name': 'labelled', 'dataset': 'digits', 'height': 16, 'width': 16}
    config.optimizer.update(learning_rate=2e-3, b2=0.99)
    config.schedule = {'name': 'cosine', 'warmup_steps': 20}
    config.train.update(
        batch_size=32,
        steps=300,
        ema_decay=0.98,
        log_every=20,
        image_every=300,
        checkpoint_every=100,
    )
    config.sample.update(steps=20, height=16, width=16)
    config.sample.guider.scale = 2.0
