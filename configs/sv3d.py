r"""Stable Video 3D: an orbit around the object in a picture.

  python train.py --config configs/sv3d.py:p --workdir runs/sv3d_p \
      --config.model.checkpoint=sv3d_p.safetensors --config.data.path=/objects
  python sample.py --checkpoint sv3d_p.safetensors --image chair.png --output chair.mp4

Variants: 'u' (one picture, no cameras; as sv3d_u.safetensors), 'p' (elevation and azimuth of each view; as
sv3d_p.safetensors), both also with the temporal decoder ('u_video_decoder', 'p_video_decoder'), and 'tiny_u',
'tiny_p' (8 views of 24x24, on pixels, for a CPU; docs/recipes/sv3d.md).

What is published is kept: networks, scalings, samplers and guidance follow sgm's sv3d_u.yaml, sv3d_p.yaml and
simple_video_sample.py: 21 views of 576x576, 50 steps, guidance that rises from 1 to 2.5 at the back and falls
again, cond_aug 1e-5. The last view is the given one, and azimuths are counted from it. Against Stable Video
Diffusion (svd.py) fps and motion are gone, and 'p' is told each view's polar angle and azimuth. The files
have no encoder of the first stage; the conditioner's is the same network and is used.

sgm has no training config. From the paper (Voleti et al. 2024, arXiv:2403.12008): SVD's weights to begin
with, renders from all around with static and dynamic orbits. Ours: noise levels, learning rate and dropping
of the condition as in svd.py, cond_aug as it is sampled. frame_ratio is that of sgm's helpers for SV4D.
"""

import pathlib

import ml_collections

from sgm_jax.config import check_variant, load_config

VARIANTS = ('u', 'p', 'u_video_decoder', 'p_video_decoder', 'tiny_u', 'tiny_p')
NUM_FRAMES = 21


def get_config(variant: str = 'p') -> ml_collections.ConfigDict:
    """The config of a variant."""
    variant = variant or 'p'
    check_variant(__file__, variant, VARIANTS)
    cameras, tiny = variant.removeprefix('tiny_')[0] == 'p', variant.startswith('tiny')
    config = load_config(str(pathlib.Path(__file__).with_name('svd.py')))
    image, _, _, frames, aug = config.model.conditioner
    config.model.conditioner = (image, frames, aug, *(_cameras(512) if cameras else ()))
    config.model.network.adm_in_channels = 1280 if cameras else 256
    config.model.task = {'name': 'image_to_orbit', 'num_frames': NUM_FRAMES}
    coder = dict(config.model.first_stage.encoder)
    config.model.first_stage.encoder = None
    if not variant.endswith('video_decoder'):
        config.model.first_stage.decoder = {**coder, 'name': 'decoder'}
    config.data = {
        'name': 'orbits',
        'path': '',
        'num_frames': NUM_FRAMES,
        'height': 576,
        'width': 576,
    }
    config.sample = {
        'sampler': {'name': 'euler_edm'},
        'discretization': {'name': 'edm', 'sigma_min': 0.002, 'sigma_max': 700.0, 'rho': 7.0},
        'guider': {'name': 'triangle', 'max_scale': 2.5, 'min_scale': 1.0},
        'zero': ('cond_frames', 'cond_frames_without_noise'),
        'steps': 50,
        'height': 576,
        'width': 576,
        'cond_aug': 1e-5,
        'elevation': 10.0,
        'frame_ratio': 0.917,
        'fps': 10,
        'decode_chunk': 7,
    }
    if tiny:
        _shrink(config, cameras)
    return config


def _cameras(outdim: int) -> tuple[dict, ...]:
    return tuple(
        {'name': 'concat_timestep', 'input_key': key, 'outdim': outdim}
        for key in ('polars_rad', 'azimuths_rad')
    )


def _shrink(config: ml_collections.ConfigDict, cameras: bool) -> None:
    """The same model with fewer of everything, on small pictures of drawn objects."""
    frames, size, width, angle = 8, 24, 128, 64
    clip = {
        'embed_dim': width,
        'vision_cfg': {
            'image_size': size,
            'layers': 2,
            'width': width,
            'head_width': 32,
            'patch_size': 8,
        },
        'text_cfg': {'context_length': 1, 'vocab_size': 1, 'width': width, 'heads': 1, 'layers': 0},
    }
    image, given, aug = config.model.conditioner[:3]
    # Never dropped: a model that has seen little is sure of little, and guidance would only burn its colours.
    told = {'ucg_rate': 0.0}
    config.model.conditioner = (
        # No weights to load: the small tower is trained along.
        {**image, **told, 'arch': clip, 'is_trainable': True},
        {**given, **told, 'encoder': None},
        {**aug, 'outdim': 32},
        *(_cameras(angle) if cameras else ()),
    )
    config.model.encode_chunk = 0
    config.model.scale_factor = 1.0
    config.model.first_stage = {'name': 'none'}
    config.model.network.update(
        in_channels=6,
        out_channels=3,
        model_channels=32,
        channel_mult=(1, 1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_head_channels=32,
        adm_in_channels=32 + 2 * angle if cameras else 32,
        context_dim=width,
        remat='none',
        # With 32 channels each of GroupNorm's 32 groups is one channel, and takes away what is added to it.
        use_scale_shift_norm=True,
    )
    config.model.task.num_frames = frames
    config.data.update(path='demo', num_frames=frames, height=size, width=size)
    # What is to be learnt is where things go; below a sigma of about 5 the noisy views show that themselves.
    config.model.loss.sigma_sampling.update(p_mean=2.7, p_std=1.3)
    # With AdamW the cameras begin to matter much later.
    config.optimizer = {
        'name': 'muon',
        'learning_rate': 4e-3,
        'weight_decay': 0.01,
        'b1': 0.9,
        'b2': 0.99,
    }
    config.schedule = {'name': 'cosine', 'warmup_steps': 30}
    config.train.update(
        batch_size=4,
        steps=900,
        ema_decay=0.99,
        log_every=50,
        image_every=0,
        checkpoint_every=300,
        validate_batch=0,
    )
    config.mesh.update(data=-1, fsdp=1)
    # Few steps stay near the mean of what may be there, which is nearer to what is; and the last step is from
    # a level of noise that was seen in training, without which grain is left.
    config.sample.update(steps=4, height=size, width=size, elevation=45.0, frame_ratio=0.0)
    config.sample.discretization.update(sigma_min=4.0, sigma_max=80.0)
    config.sample.guider = {'name': 'identity'}
