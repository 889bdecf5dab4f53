"""Which published model a state dict is of, told from the names and shapes of its tensors."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

NETWORK = 'model.diffusion_model.'


class Family(NamedTuple):
    """What the tensors look like, and FILE.py[:VARIANT] in configs/ that describes it (None: none does)."""

    name: str
    config: str | None = None


SVD = Family('Stable Video Diffusion', 'svd.py')
_UNKNOWN = Family('an unknown network')
# By the width of the vector y that the network is told, without and with time in it.
PICTURES = {
    2816: Family('SDXL base', 'sdxl_base.py'),
    2560: Family('SDXL refiner', 'sdxl_refiner.py'),
}
VIDEOS = {768: SVD, 256: Family('SV3D_u', 'sv3d.py:u'), 1280: Family('SV3D_p', 'sv3d.py:p')}
# Without such a vector: by the width of the text's tokens.
TEXTS = {1024: Family('Stable Diffusion 2', 'sd21.py'), 768: Family('Stable Diffusion 1')}
# Published models that have the same tensors, by the config that is taken: (it, the other, the other's).
ALIKE = {
    'svd.py': ('Stable Video Diffusion of 14 frames', 'SVD-XT of 25', 'svd.py:xt'),
    'svd.py:image_decoder': (
        'Stable Video Diffusion of 14 frames',
        'SVD-XT of 25',
        'svd.py:xt_image_decoder',
    ),
    'sdxl_base.py': ('SDXL base', 'SDXL-Turbo', 'sdxl_turbo.py'),
    'sd21.py': (
        'Stable Diffusion 2 of 512x512, which predicts the noise',
        '768-v',
        'sd21.py:768v',
    ),
}
# By the channels that the network takes in, where these are more than a picture's latents.
_TASKS = {5: 'depth', 7: 'upscaling', 9: 'inpainting'}
# What else there is, by a part of a name that nothing else has.
_OTHERS = {
    'lora_': 'a LoRA, not a whole model',
    '.lora': 'a LoRA, not a whole model',
    'control_model.': 'a ControlNet',
    'controlnet_cond_embedding.': 'a ControlNet',
    'double_blocks.0.img_attn.': 'Flux',
    'joint_blocks.0.x_block.': 'Stable Diffusion 3',
    'clip_txt_mapper.': 'Stable Cascade',
    'clip_txt_pooled_mapper.': 'Stable Cascade',
    'single_transformer_blocks.0.': 'the transformer of a diffusers folder',
    'down_blocks.0.resnets.0.': 'one part of a diffusers folder (give the folder)',
    'text_model.encoder.layers.0.': 'a text encoder alone',
    'encoder.down.0.block.0.': 'a first stage alone',
}
_VECTOR = f'{NETWORK}label_emb.0.0.weight'
_TIME = f'{NETWORK}input_blocks.1.0.time_stack.in_layers.0.weight'
_TEXT = '.1.transformer_blocks.0.attn2.to_k.weight'


def family_of(names: Iterable[str], shape: Callable[[str], tuple[int, ...]]) -> Family:
    """The family of tensors, by sgm's names; `shape` gives a tensor's by its name."""
    names = set(names)
    ours = any(name.startswith((f'{NETWORK}input_blocks.', _VECTOR)) for name in names)
    if not ours or any(name.startswith('control_model.') for name in names):
        told = (name for part, name in _OTHERS.items() if any(part in k for k in names))
        some = ', '.join(sorted(names)[:3])
        return Family(next(told, f'no diffusion checkpoint of sgm (its tensors: {some}, ...)'))
    width = shape(_VECTOR)[1] if _VECTOR in names else None
    if _TIME in names:
        return _video(names, VIDEOS.get(width, _UNKNOWN))
    if width is not None:
        found = PICTURES.get(width, _UNKNOWN)
    else:
        keys = sorted(name for name in names if name.startswith(NETWORK) and name.endswith(_TEXT))
        found = TEXTS.get(shape(keys[0])[1], _UNKNOWN) if keys else _UNKNOWN
    first = f'{NETWORK}input_blocks.0.0.weight'
    task = _TASKS.get(shape(first)[1]) if first in names else None
    return Family(f'{found.name} for {task}') if task else found


def _video(names: set[str], found: Family) -> Family:
    if any('.time_mix_blocks.' in name for name in names):
        return Family('SV4D')
    stage = [name for name in names if name.startswith('first_stage_model.decoder.')]
    temporal = any('.time_stack.' in name for name in stage)
    if found is SVD and stage and not temporal:
        return Family(f'{SVD.name} with a decoder of single pictures', 'svd.py:image_decoder')
    if found.config and found is not SVD and temporal:
        return Family(f'{found.name} with a temporal decoder', f'{found.config}_video_decoder')
    return found
