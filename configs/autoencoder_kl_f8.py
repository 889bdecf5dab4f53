"""The image autoencoder of latent diffusion: pictures to latents of an eighth of their side.

  python train.py --config configs/autoencoder_kl_f8.py --workdir runs/kl_f8 --config.data.path=/pictures

Variants: '' (4 channels, as the first stages of Stable Diffusion and SDXL), '8ch' (8 channels), and 'tiny' (a
small one on crops of 64x64, which trains on a CPU, on pictures that installed packages ship).

Loss: l1 and LPIPS with a learned scale, KL, and from `disc_start` on a patch discriminator, by turns. The
networks are sgm's; the recipe is its example_training/autoencoder/kl-f4/imagenet-attnfree-logvar.yaml. What
to expect: docs/recipes/autoencoders.md.
"""

import ml_collections

from sgm_jax.config import check_variant

VARIANTS = ('', '8ch', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    config = ml_collections.ConfigDict()
    config.seed = 0
    coder = {
        'attn_type': 'vanilla',
        'double_z': True,
        'z_channels': 8 if variant == '8ch' else 4,
        'resolution': 256,
        'in_channels': 3,
        'out_ch': 3,
        'ch': 128,
        'ch_mult': (1, 2, 4, 4),
        'num_res_blocks': 2,
        'attn_resolutions': (),
        'dropout': 0.0,
    }
    config.model = {
        'name': 'autoencoding',
        'first_stage': {
            'name': 'autoencoder_kl',
            'embed_dim': coder['z_channels'],
            'ddconfig': coder,
        },
        'loss': {
            'name': 'lpips_with_discriminator',
            'perceptual_weight': 0.25,
            'perceptual_start': 0,
            'disc_start': 20001,
            'disc_weight': 0.5,
            'learn_logvar': True,
            'regularization_weights': {'kl_loss': 1.0},
            'alternate': True,
            'discriminator': {'ndf': 64, 'n_layers': 3},
        },
        'checkpoint': '',
        'lpips_checkpoint': '',
    }
    config.data = {
        'name': 'pictures',
        'path': '',
        'height': 256,
        'width': 256,
        'crop_scale': (0.5, 1.0),
        'flip': True,
        'max_damaged': 0.01,
    }
    # Without decay this is Adam, sgm's default; 4.5e-6 for each picture of a batch.
    config.optimizer = {'name': 'adamw', 'learning_rate': 4.5e-6 * 64, 'weight_decay': 0.0}
    config.schedule = {'name': 'constant', 'warmup_steps': 1000}
    config.train = {
        'batch_size': 64,
        'steps': 200_000,
        'ema_decay': 0.999,
        'log_every': 50,
        'image_every': 1000,
        'validate_every': 1000,
        'checkpoint_every': 2000,
        'keep': 3,
    }
    config.mesh = {'data': -1, 'fsdp': 1, 'context': 1}
    if variant == 'tiny':
        _tiny(config)
    return config


def _tiny(config: ml_collections.ConfigDict) -> None:
    """About ten minutes on two cores: pixels first, then LPIPS too, and the discriminator at the end."""
    # Few groups, or norms lose flat colours and contrast; the lowest level is cheap, so it is wide.
    config.model.first_stage.ddconfig.update(
        attn_type='none',
        resolution=64,
        ch=32,
        ch_mult=(1, 1, 2, 4),
        norm_groups=2,
        num_res_blocks=0,
        z_channels=32,
    )
    config.model.first_stage.embed_dim = 32
    config.model.init_gain = 1.7
    config.model.init_linear = True
    # LPIPS doubles the time of a step, so it comes when pixels alone have taught most.
    config.model.loss.update(
        perceptual_weight=1.0,
        perceptual_start=1500,
        regularization_weights={'kl_loss': 1e-2},
        disc_start=2140,
        disc_weight=0.2,
        discriminator={'ndf': 32, 'n_layers': 2},
    )
    size = {'height': 64, 'width': 64, 'held_out_fraction': 0.2}
    # Held out are crops of photographs as they are, and whole frames.
    config.data = {
        'name': 'mixture',
        'sources': (
            {
                'name': 'pictures',
                'path': 'demo',
                'crops_per_picture': 16,
                'crop_scale': (0.1, 0.4),
                **size,
            },
            {
                'name': 'video_frames',
                'path': 'demo',
                'windows_per_video': 32,
                'cache': True,
                'crop_scale': (0.3, 1.0),
                **size,
            },
        ),
    }
    # With Adam alone the l1 stays for hundreds of steps where each crop's mean colour has it.
    # By singular values (rms=None) small kernels move as far, for their size, as large ones.
    config.optimizer.update(
        name='muon',
        learning_rate=1e-2,
        rms=None,
        b1=0.9,
        b2=0.99,
        groups=({'pattern': r'.*\.(bias|scale)$|loss', 'lr_factor': 0.3},),
    )
    config.disc_optimizer = {'name': 'adamw', 'lr_factor': 0.03}
    config.schedule = {'name': 'cosine', 'warmup_steps': 20, 'end': 1e-4}
    config.train.update(
        batch_size=4,
        steps=2250,
        ema_decay=0.99,
        log_every=50,
        image_every=1125,
        validate_every=1125,
        checkpoint_every=1070,
    )
