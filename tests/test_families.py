"""Published models told by their tensors."""

import golden
import numpy as np
import pytest

from sgm_jax.errors import UserError
from sgm_jax.interop import write_sgm
from sgm_jax.interop.families import family_of
from sgm_jax.sampling.recognise import config_of

NETWORK = 'model.diffusion_model.'


@pytest.mark.parametrize(
    ('manifest', 'name', 'config'),
    [
        ('sd_xl_base', 'SDXL base', 'sdxl_base.py'),
        ('sd_xl_refiner', 'SDXL refiner', 'sdxl_refiner.py'),
        ('sd_2_1', 'Stable Diffusion 2', 'sd21.py'),
        ('svd', 'Stable Video Diffusion', 'svd.py'),
        ('sv3d_u', 'SV3D_u', 'sv3d.py:u'),
        ('sv3d_p', 'SV3D_p', 'sv3d.py:p'),
    ],
)
def test_published_models(manifest, name, config):
    shapes = golden.manifest(manifest)
    assert family_of(shapes, shapes.get) == (name, config)


@pytest.mark.parametrize(
    ('like', 'changes', 'name'),
    [
        ('svd', {f'{NETWORK}input_blocks.1.0.time_mix_blocks.in_layers.0.bias': [320]}, 'SV4D'),
        ('svd', {f'{NETWORK}label_emb.0.0.weight': [1280, 7]}, 'an unknown network'),
        ('sd_xl_base', {f'{NETWORK}label_emb.0.0.weight': [1280, 7]}, 'an unknown network'),
        (
            'sd_xl_base',
            {f'{NETWORK}input_blocks.0.0.weight': [320, 9, 3, 3]},
            'SDXL base for inpainting',
        ),
        (
            'sd_2_1',
            {f'{NETWORK}input_blocks.0.0.weight': [320, 5, 3, 3]},
            'Stable Diffusion 2 for depth',
        ),
        ('sd_2_1', {'control_model.time_embed.0.bias': [1]}, 'a ControlNet'),
        (None, {f'{NETWORK}joint_blocks.0.x_block.attn.qkv.weight': [1]}, 'Stable Diffusion 3'),
        (None, {'double_blocks.0.img_attn.qkv.weight': [1]}, 'Flux'),
        (None, {f'{NETWORK}double_blocks.0.img_attn.qkv.weight': [1]}, 'Flux'),
        (
            None,
            {'lora_unet_mid_block_attentions_0.lora_up.weight': [1]},
            'a LoRA, not a whole model',
        ),
        (None, {'down_blocks.0.resnets.0.conv1.bias': [1]}, 'one part of a diffusers folder'),
        (None, {'encoder.down.0.block.0.conv1.bias': [1]}, 'a first stage alone'),
        (None, {'a': [1], 'b': [1]}, r'no diffusion checkpoint of sgm \(its tensors: a, b, ...\)'),
    ],
)
def test_others_have_no_config_and_are_named(like, changes, name):
    shapes = (golden.manifest(like) if like else {}) | changes
    found = family_of(shapes, shapes.get)
    assert found.config is None
    assert found.name.startswith(name.replace('\\', ''))


def test_stable_diffusion_1_and_svd_with_another_decoder():
    shapes = golden.manifest('sd_2_1')
    narrow = {k: [s[0], 768] if 'attn2.to_k' in k else s for k, s in shapes.items()}
    assert family_of(narrow, narrow.get) == ('Stable Diffusion 1', None)
    pictures = {
        k: s for k, s in golden.manifest('svd').items() if 'first_stage' not in k or 'time' not in k
    }
    assert 'decoder of single pictures' in family_of(pictures, pictures.get).name


def test_another_models_file_is_named(tmp_path):
    path = tmp_path / 'flux.safetensors'
    write_sgm(path, {'double_blocks.0.img_attn.qkv.weight': np.zeros(3, np.float32)})
    with pytest.raises(
        UserError, match=r'flux\.safetensors looks like Flux, which has no config here'
    ):
        config_of(path)
