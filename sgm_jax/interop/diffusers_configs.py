"""The JSON files of a diffusers folder, told from the shapes of its tensors.

What shapes do not tell, such as how many channels an attention head has, comes from `Hints`, whose defaults
are the published models'. Source of the fields: the classes of diffusers and transformers that read them,
and the config files of the published folders.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from sgm_jax.errors import UserError
from sgm_jax.interop.diffusers_clip import layers_of
from sgm_jax.interop.diffusers_names import Level, levels_of_diffusers
from sgm_jax.interop.diffusers_parts import Layout, Part

Shapes = Mapping[str, tuple[int, ...]]
# Of the fields below; a reader of another version knows its own defaults for others.
_VERSION = '0.35.0'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What a config says and shapes don't; None for the published model's.

    Attributes:
      num_head_channels: of the network's attention; num_heads: or how many heads, at every level.
      text_head_width, vision_head_width: of CLIP's.
      prediction_type: 'epsilon' or 'v_prediction'.
      scale_factor: of the latents.
      num_frames: of a clip.
      sample_size: height and width of the latents.
    """

    num_head_channels: int = 64
    num_heads: int | None = None
    text_head_width: int = 64
    vision_head_width: int = 80
    prediction_type: str | None = None
    scale_factor: float | None = None
    num_frames: int = 14
    sample_size: int | None = None


# Of SD 2's two models with the same tensors those of 512, as configs/sd21.py has them.
_PREDICTION = {'svd': 'v_prediction'}
_SIZE = {'sd1': 64, 'svd': 96, 'sd2': 64}
_SCALE = {'sdxl': 0.13025, 'refiner': 0.13025}
_PIPELINE = {
    'sd1': 'StableDiffusionPipeline',
    'sd2': 'StableDiffusionPipeline',
    'sdxl': 'StableDiffusionXLPipeline',
    'refiner': 'StableDiffusionXLImg2ImgPipeline',
    'svd': 'StableVideoDiffusionPipeline',
}


def component(
    layout: Layout, part: Part, shapes: Shapes, hints: Hints, *, pooled: int = 0
) -> dict[str, Any]:
    """The config.json of a folder.

    Args:
      shapes: of the folder's tensors, by diffusers' names.
      pooled: the width of the text's vector, of which SDXL's networks are told.
    """
    if part.folder == 'unet':
        config = _unet(layout, shapes, hints, pooled)
    elif part.folder == 'vae':
        config = _autoencoder(layout, part, shapes, hints)
    else:
        vision = part.folder == 'image_encoder'
        config = _vision(shapes, hints) if vision else _text(layout, part, shapes, hints)
        return {**config, 'architectures': [part.kind], 'layer_norm_eps': 1e-5}
    return {'_class_name': part.kind, '_diffusers_version': _VERSION, **config}


def _unet(layout: Layout, shapes: Shapes, hints: Hints, pooled: int) -> dict[str, Any]:
    down = levels_of_diffusers(shapes, 'down_blocks')
    up = levels_of_diffusers(shapes, 'up_blocks')
    video = layout.kind == 'svd'
    inner = 'spatial_res_block.' if video else ''
    channels = [
        shapes[f'down_blocks.{i}.resnets.0.{inner}conv1.weight'][0] for i in range(len(down))
    ]
    depth = lambda at: len(
        {m[1] for n in shapes if (m := re.match(rf'{at}\.transformer_blocks\.(\d+)\.', n))}
    )
    attends = [_attends(level) for level in down]
    depths = [depth(f'down_blocks.{i}.attentions.0') if a else 1 for i, a in enumerate(attends)]
    middle = depth('mid_block.attentions.0')
    if attends[-1] and depths[-1] != middle:
        raise UserError(
            f'diffusers has one depth for the last level ({depths[-1]}) and the middle ({middle})'
        )
    depths[-1] = middle
    layers = [len(level.attends) for level in down]
    if [_attends(level) for level in up] != attends[::-1] or len(set(layers)) > 1:
        raise UserError('diffusers has no network whose levels differ like these')
    context = [
        s[1] for n, s in shapes.items() if n.endswith('transformer_blocks.0.attn2.to_k.weight')
    ]
    heads = [hints.num_heads or n // hints.num_head_channels for n in channels]
    if layout.kind == 'sd1' and not hints.num_heads:
        heads = [8] * len(channels)  # Stable Diffusion 1 counted heads, not their channels
    embed = shapes.get('add_embedding.linear_1.weight')
    config = {
        'sample_size': hints.sample_size or _SIZE.get(layout.kind, 128),
        'in_channels': shapes['conv_in.weight'][1],
        'out_channels': shapes['conv_out.weight'][0],
        'block_out_channels': channels,
        'layers_per_block': layers[0],
        'cross_attention_dim': context[0],
        'transformer_layers_per_block': depths,
    }
    if video:
        return config | {
            'down_block_types': _types(attends, 'DownBlockSpatioTemporal'),
            'up_block_types': _types(attends[::-1], 'UpBlockSpatioTemporal'),
            'num_attention_heads': heads,
            'num_frames': hints.num_frames,
            # Frame rate, motion and noise, in as many channels each.
            'addition_time_embed_dim': embed[1] // 3,
            'projection_class_embeddings_input_dim': embed[1],
        }
    config |= {
        'down_block_types': _types(attends, 'DownBlock2D'),
        'mid_block_type': 'UNetMidBlock2DCrossAttn',
        'up_block_types': _types(attends[::-1], 'UpBlock2D'),
        # Its name notwithstanding, the number of heads.
        'attention_head_dim': heads,
        'use_linear_projection': len(shapes['mid_block.attentions.0.proj_in.weight']) == 2,
        'upcast_attention': layout.kind == 'sd2',
        'act_fn': 'silu',
        'norm_num_groups': 32,
        'norm_eps': 1e-5,
        'flip_sin_to_cos': True,
        'freq_shift': 0,
        'downsample_padding': 1,
        'mid_block_scale_factor': 1,
    }
    if embed:
        # Beside the text's vector: sizes and crop, six numbers; of the refiner a score in place of two.
        numbers = 5 if layout.kind == 'refiner' else 6
        config |= {
            'addition_embed_type': 'text_time',
            'addition_time_embed_dim': (embed[1] - pooled) // numbers,
            'projection_class_embeddings_input_dim': embed[1],
        }
    return config


def _attends(level: Level) -> bool:
    if len(set(level.attends)) > 1:
        raise UserError('diffusers has no network in whose levels only some blocks attend')
    return level.attends[0]


def _types(attends: list[bool], name: str) -> list[str]:
    return [f'CrossAttn{name}' if attending else name for attending in attends]


def _autoencoder(layout: Layout, part: Part, shapes: Shapes, hints: Hints) -> dict[str, Any]:
    levels = sorted(
        {int(m[1]) for n in shapes if (m := re.match(r'encoder\.down_blocks\.(\d+)\.', n))}
    )
    first = lambda i: f'encoder.down_blocks.{i}.resnets.0.conv1.weight'
    layers = {
        m[1] for n in shapes if (m := re.match(r'encoder\.down_blocks\.0\.resnets\.(\d+)\.', n))
    }
    config = {
        'in_channels': shapes['encoder.conv_in.weight'][1],
        'out_channels': shapes['decoder.conv_out.weight'][0],
        'latent_channels': shapes['decoder.conv_in.weight'][1],
        'block_out_channels': [shapes[first(i)][0] for i in levels],
        'layers_per_block': len(layers),
        'down_block_types': ['DownEncoderBlock2D'] * len(levels),
        'scaling_factor': hints.scale_factor or _SCALE.get(layout.kind, 0.18215),
        'sample_size': 8 * (hints.sample_size or _SIZE.get(layout.kind, 128)),
        'force_upcast': layout.kind not in ('sd1', 'sd2'),
    }
    if part.kind == 'AutoencoderKLTemporalDecoder':
        if len(layers) != 2:
            # Its middle has as many blocks as its levels, sgm's always two.
            raise UserError(
                f'diffusers has a temporal decoder of 2 blocks to a level alone, not {len(layers)}'
            )
        return config
    return config | {
        'up_block_types': ['UpDecoderBlock2D'] * len(levels),
        'act_fn': 'silu',
        'norm_num_groups': 32,
        'use_quant_conv': 'quant_conv.weight' in shapes,
        'use_post_quant_conv': 'post_quant_conv.weight' in shapes,
        'mid_block_add_attention': 'encoder.mid_block.attentions.0.to_q.weight' in shapes,
    }


def _text(layout: Layout, part: Part, shapes: Shapes, hints: Hints) -> dict[str, Any]:
    words, width = shapes['text_model.embeddings.token_embedding.weight']
    inner = shapes['text_model.encoder.layers.0.mlp.fc1.weight'][0]
    # OpenAI's CLIP has the quick approximation, open_clip's the exact one.
    openai = part.folder == 'text_encoder' and layout.kind != 'sd2'
    return {
        'model_type': 'clip_text_model',
        'vocab_size': words,
        'max_position_embeddings': shapes['text_model.embeddings.position_embedding.weight'][0],
        'hidden_size': width,
        'intermediate_size': inner,
        'num_hidden_layers': layers_of(shapes),
        'num_attention_heads': width // hints.text_head_width,
        'projection_dim': shapes.get('text_projection.weight', (width,))[0],
        'hidden_act': 'quick_gelu' if openai else 'gelu',
        # With an end of 2 transformers takes the text's vector where the largest token is, as CLIP does.
        'bos_token_id': 0,
        'eos_token_id': 2,
        'pad_token_id': 1,
    }


def _vision(shapes: Shapes, hints: Hints) -> dict[str, Any]:
    width, channels, patch, _ = shapes['vision_model.embeddings.patch_embedding.weight']
    patches = shapes['vision_model.embeddings.position_embedding.weight'][0] - 1
    return {
        'model_type': 'clip_vision_model',
        'hidden_size': width,
        'intermediate_size': shapes['vision_model.encoder.layers.0.mlp.fc1.weight'][0],
        'projection_dim': shapes['visual_projection.weight'][0],
        'num_hidden_layers': layers_of(shapes),
        'num_attention_heads': width // hints.vision_head_width,
        'num_channels': channels,
        'image_size': patch * round(patches**0.5),
        'patch_size': patch,
        'hidden_act': 'gelu',
    }


def scheduler(layout: Layout, hints: Hints) -> dict[str, Any]:
    """The noise levels that the model was trained on, for Euler's steps."""
    config = {
        '_class_name': 'EulerDiscreteScheduler',
        '_diffusers_version': _VERSION,
        'beta_start': 0.00085,
        'beta_end': 0.012,
        'beta_schedule': 'scaled_linear',
        'num_train_timesteps': 1000,
        'prediction_type': hints.prediction_type or _PREDICTION.get(layout.kind, 'epsilon'),
        'interpolation_type': 'linear',
        'steps_offset': 1,
        'timestep_spacing': 'leading',
        'use_karras_sigmas': layout.kind == 'svd',
    }
    if layout.kind == 'svd':
        config |= {'sigma_min': 0.002, 'sigma_max': 700.0, 'timestep_type': 'continuous'}
    return config


# How CLIP's image tower of Stable Video Diffusion is shown a picture.
PREPROCESSOR = {
    'image_processor_type': 'CLIPImageProcessor',
    'do_center_crop': True,
    'do_convert_rgb': True,
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
    'resample': 3,
    'rescale_factor': 1 / 255,
}


def model_index(layout: Layout, tokenizers: Collection[str]) -> dict[str, Any]:
    """The list of a folder's parts. `tokenizers`: those folders of theirs that there are."""
    absent = [None, None]
    index: dict[str, Any] = {
        '_class_name': _PIPELINE[layout.kind],
        '_diffusers_version': _VERSION,
        'scheduler': ['diffusers', 'EulerDiscreteScheduler'],
    }
    if layout.kind == 'svd':
        index['feature_extractor'] = ['transformers', 'CLIPImageProcessor']
    else:
        index |= {'tokenizer': absent, 'text_encoder': absent}
    if layout.kind in ('sdxl', 'refiner'):
        index |= {'tokenizer_2': absent, 'force_zeros_for_empty_prompt': layout.kind == 'sdxl'}
        index |= {'image_encoder': absent, 'feature_extractor': absent}
    if layout.kind == 'refiner':
        index['requires_aesthetics_score'] = True
    if layout.kind in ('sd1', 'sd2'):
        index |= {'safety_checker': absent, 'feature_extractor': absent}
        index['requires_safety_checker'] = False
    for part in layout.parts:
        library = 'transformers' if part.kind.startswith('CLIP') else 'diffusers'
        index[part.folder] = [library, part.kind]
    return index | {name: ['transformers', 'CLIPTokenizer'] for name in tokenizers}
