"""Folders of diffusers: its real names for published models, and bits that come back as they went."""

import json
import math
import re
import shutil

import golden
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import shrunk
import torch_archives

from sgm_jax.errors import UserError
from sgm_jax.interop import clip_vocabulary, open_tensors, write_diffusers, write_sgm
from sgm_jax.interop.diffusers_clip import OPEN_CLIP_TEXT
from sgm_jax.interop.diffusers_files import plan, read
from sgm_jax.interop.diffusers_names import AUTOENCODER, UNET
from sgm_jax.interop.diffusers_parts import layout_of
from sgm_jax.interop.tensors import Lazy, Tensors, held

PUBLISHED = ('sd_xl_base', 'sd_xl_refiner', 'sd_2_1', 'svd')


def shapes_of(tensors: dict) -> dict:
    return {name: list(lazy.shape) for name, lazy in tensors.items()}


def abstract(model: str) -> Tensors:
    """A published checkpoint's names and shapes, without numbers."""
    shapes = golden.manifest(model)
    return Tensors({k: Lazy(tuple(s), np.dtype(np.float32), None) for k, s in shapes.items()})


@pytest.mark.parametrize('model', PUBLISHED)
def test_published_models_have_the_names_and_shapes_of_diffusers_own_classes(model):
    # These manifests are of the real classes of diffusers and transformers: benchmarks/diffusers_parity.py.
    real = golden.manifest(f'diffusers_{model}')
    _, plans, extra = plan(abstract(model))
    assert {part.folder: shapes_of(found) for part, found, _ in plans} == real
    # And back: the folders and what is beside them are the checkpoint again.
    back = dict(extra)
    for part, found, _ in plans:
        back |= part.given(part.table.inward(found))
    assert shapes_of(back) == golden.manifest(model)


# Fields of the config.json files of the published folders (stabilityai's on the Hugging Face hub).
FIELDS = {
    'sd_xl_base': {
        'unet': {
            'block_out_channels': [320, 640, 1280],
            'transformer_layers_per_block': [1, 2, 10],
            'attention_head_dim': [5, 10, 20],
            'cross_attention_dim': 2048,
            'addition_embed_type': 'text_time',
            'addition_time_embed_dim': 256,
            'projection_class_embeddings_input_dim': 2816,
            'use_linear_projection': True,
            'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
            'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
            'layers_per_block': 2,
            'sample_size': 128,
        },
        'vae': {
            'block_out_channels': [128, 256, 512, 512],
            'layers_per_block': 2,
            'latent_channels': 4,
            'scaling_factor': 0.13025,
            'force_upcast': True,
            'sample_size': 1024,
        },
        'text_encoder': {
            'hidden_size': 768,
            'num_hidden_layers': 12,
            'num_attention_heads': 12,
            'hidden_act': 'quick_gelu',
            'vocab_size': 49408,
        },
        'text_encoder_2': {
            'hidden_size': 1280,
            'intermediate_size': 5120,
            'num_hidden_layers': 32,
            'num_attention_heads': 20,
            'projection_dim': 1280,
            'hidden_act': 'gelu',
        },
    },
    'sd_xl_refiner': {
        'unet': {
            'block_out_channels': [384, 768, 1536, 1536],
            'attention_head_dim': [6, 12, 24, 24],
            'cross_attention_dim': 1280,
            'addition_time_embed_dim': 256,
            'projection_class_embeddings_input_dim': 2560,
        }
    },
    'sd_2_1': {
        'unet': {
            'block_out_channels': [320, 640, 1280, 1280],
            'attention_head_dim': [5, 10, 20, 20],
            'cross_attention_dim': 1024,
            'use_linear_projection': True,
        },
        'vae': {'scaling_factor': 0.18215},
        'text_encoder': {
            'hidden_size': 1024,
            'num_hidden_layers': 23,
            'num_attention_heads': 16,
            'hidden_act': 'gelu',
        },
    },
    'svd': {
        'unet': {
            'in_channels': 8,
            'num_attention_heads': [5, 10, 20, 20],
            'addition_time_embed_dim': 256,
            'projection_class_embeddings_input_dim': 768,
            'cross_attention_dim': 1024,
            'num_frames': 14,
            'sample_size': 96,
        },
        'vae': {'_class_name': 'AutoencoderKLTemporalDecoder', 'force_upcast': True},
        'image_encoder': {
            'hidden_size': 1280,
            'intermediate_size': 5120,
            'num_hidden_layers': 32,
            'num_attention_heads': 16,
            'projection_dim': 1024,
            'image_size': 224,
            'patch_size': 14,
            'hidden_act': 'gelu',
        },
    },
}


@pytest.mark.parametrize('model', PUBLISHED)
def test_configs_say_what_the_published_ones_do(model):
    configs = {part.folder: config for part, _, config in plan(abstract(model))[1]}
    for folder, fields in FIELDS[model].items():
        assert {key: configs[folder].get(key) for key in fields} == fields


# Ours and theirs, as anyone can look them up in a published pair of files.
PAIRS = [
    (UNET, 'input_blocks.0.0.weight', 'conv_in.weight'),
    (UNET, 'input_blocks.2.0.emb_layers.1.bias', 'down_blocks.0.resnets.1.time_emb_proj.bias'),
    (UNET, 'input_blocks.3.0.op.weight', 'down_blocks.0.downsamplers.0.conv.weight'),
    (UNET, 'input_blocks.8.1.proj_in.bias', 'down_blocks.2.attentions.1.proj_in.bias'),
    (UNET, 'middle_block.2.out_layers.3.bias', 'mid_block.resnets.1.conv2.bias'),
    (UNET, 'output_blocks.2.2.conv.bias', 'up_blocks.0.upsamplers.0.conv.bias'),
    (
        UNET,
        'output_blocks.8.0.skip_connection.weight',
        'up_blocks.2.resnets.2.conv_shortcut.weight',
    ),
    (UNET, 'label_emb.0.2.bias', 'add_embedding.linear_2.bias'),
    (AUTOENCODER, 'decoder.up.3.block.2.conv1.bias', 'decoder.up_blocks.0.resnets.2.conv1.bias'),
    (AUTOENCODER, 'decoder.up.1.upsample.conv.bias', 'decoder.up_blocks.2.upsamplers.0.conv.bias'),
    (AUTOENCODER, 'encoder.mid.attn_1.norm.bias', 'encoder.mid_block.attentions.0.group_norm.bias'),
    (
        OPEN_CLIP_TEXT,
        'transformer.resblocks.5.mlp.c_fc.bias',
        'text_model.encoder.layers.5.mlp.fc1.bias',
    ),
    (OPEN_CLIP_TEXT, 'ln_final.bias', 'text_model.final_layer_norm.bias'),
]
_PREFIX = {
    id(UNET): 'model.diffusion_model.',
    id(AUTOENCODER): 'first_stage_model.',
    id(OPEN_CLIP_TEXT): 'conditioner.embedders.1.model.',
}


@pytest.mark.parametrize(('table', 'ours', 'theirs'), PAIRS)
def test_single_names_of_sdxl(table, ours, theirs):
    prefix = _PREFIX[id(table)]
    lazies = {
        k.removeprefix(prefix): x
        for k, x in abstract('sd_xl_base').lazies.items()
        if k.startswith(prefix)
    }
    found, _ = table.outward(lazies)
    assert found[theirs] is lazies[ours]
    assert table.inward(found)[ours] is lazies[ours]


def test_layouts_that_differ():
    rng = np.random.default_rng(0)
    fused, projection = rng.normal(size=(6, 2)), rng.normal(size=(2, 3))
    at = 'transformer.resblocks.0.attn.in_proj_weight'
    found, _ = OPEN_CLIP_TEXT.outward({at: held(fused), 'text_projection': held(projection)})
    for index, part in enumerate('qkv'):
        name = f'text_model.encoder.layers.0.self_attn.{part}_proj.weight'
        np.testing.assert_array_equal(found[name].read(), fused[2 * index : 2 * index + 2])
    np.testing.assert_array_equal(found['text_projection.weight'].read(), projection.T)
    # Old folders call a first stage's attention otherwise.
    query = {'encoder.mid_block.attentions.0.query.weight': held(np.ones((2, 2)))}
    assert AUTOENCODER.inward(query)['encoder.mid.attn_1.q.weight'].shape == (2, 2, 1, 1)


def assert_bits(got, want: dict) -> None:
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == got.shape(name) == array.shape
        assert got[name].tobytes() == array.tobytes(), name


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> dict:
    """Small checkpoints by the names of published ones, in all number types, and their folders."""
    made = {}
    for model, dtype in zip(
        PUBLISHED, (np.float32, np.float16, ml_dtypes.bfloat16, np.float32), strict=True
    ):
        weights = shrunk.checkpoint(model, dtype)
        folder = tmp_path_factory.mktemp('diffusers') / model
        hints = dict(num_head_channels=1, text_head_width=1, vision_head_width=1)
        write_diffusers(folder, weights, hints=hints)
        made[model] = weights, folder
    return made


@pytest.mark.parametrize('model', PUBLISHED)
def test_there_and_back_bit_for_bit(folders, model):
    weights, folder = folders[model]
    assert_bits(open_tensors(folder), weights)
    assert not list(folder.parent.glob('.*'))


@pytest.mark.parametrize(
    ('model', 'pipeline', 'prediction', 'others'),
    [
        ('sd_xl_base', 'StableDiffusionXLPipeline', 'epsilon', {'tokenizer', 'tokenizer_2'}),
        ('sd_xl_refiner', 'StableDiffusionXLImg2ImgPipeline', 'epsilon', {'text_encoder'}),
        ('sd_2_1', 'StableDiffusionPipeline', 'epsilon', {'tokenizer', 'safety_checker'}),
        ('svd', 'StableVideoDiffusionPipeline', 'v_prediction', set()),
    ],
)
def test_a_folder_lists_its_parts(folders, model, pipeline, prediction, others):
    _, folder = folders[model]
    index = json.loads((folder / 'model_index.json').read_text())
    assert index['_class_name'] == pipeline
    named = {k: v for k, v in index.items() if isinstance(v, list)}
    present = {name for name, (library, _) in named.items() if library}
    assert present == {p.name for p in folder.iterdir() if p.is_dir()}
    assert others <= {name for name, (library, _) in named.items() if not library}
    schedule = json.loads((folder / 'scheduler' / 'scheduler_config.json').read_text())
    assert schedule['_class_name'] == 'EulerDiscreteScheduler'
    assert schedule['prediction_type'] == prediction


@pytest.mark.parametrize('model', PUBLISHED)
def test_folders_that_others_wrote(folders, model, tmp_path, caplog):
    # Theirs have no file of sgm's own tensors.
    weights, folder = folders[model]
    copy = shutil.copytree(folder, tmp_path / model)
    (copy / 'sgm_extra.safetensors').unlink()
    found = open_tensors(copy)
    assert set(found) == set(weights)
    sizes = ('positional_embedding', 'text_projection', 'token_embedding.weight')
    for name, array in weights.items():
        if model == 'svd' and name.endswith(sizes):
            continue  # of a published size, which the shrunk ones are not
        assert found.shape(name) == found[name].shape == array.shape, name
        assert found.dtype(name) == found[name].dtype == array.dtype
    scales = [name for name in weights if name.endswith('logit_scale')]
    for name in scales:
        assert float(found[name]) == pytest.approx(math.log(100), rel=4e-3)
    zeros = {name for name in found if not np.any(np.asarray(found[name], np.float32))}
    kept = json.loads((folder / 'model_index.json').read_text())['_class_name']
    if kept.startswith('StableDiffusionXL'):
        assert zeros == set()
    else:
        assert 'no sample depends on' in caplog.text
        used = 'diffusion_model|visual|first_stage_model|resblocks.22|ln_final'
        used = used.replace('|ln_final', '') if model == 'svd' else used
        assert not [name for name in zeros if any(part in name for part in used.split('|'))]


def test_the_first_stage_of_a_video_model_encodes_as_its_conditioner_does(folders, tmp_path):
    # Two convolutions one after the other, and the one that takes their place.
    weights, folder = folders['svd']
    copy = shutil.copytree(folder, tmp_path / 'svd')
    (copy / 'sgm_extra.safetensors').unlink()
    found, x = open_tensors(copy), np.random.default_rng(0).normal(size=8)
    frame = 'conditioner.embedders.3.encoder.'
    middle = lambda name: weights[f'{frame}{name}.weight'][:, :, 1, 1]
    both = middle('encoder.conv_out') @ x + weights[f'{frame}encoder.conv_out.bias']
    quant = weights[f'{frame}quant_conv.weight'][:, :, 0, 0]
    both = quant @ both + weights[f'{frame}quant_conv.bias']
    stage = 'first_stage_model.encoder.conv_out.'
    one = found[f'{stage}weight'][:, :, 1, 1] @ x + found[f'{stage}bias']
    np.testing.assert_allclose(one, both, rtol=1e-5, atol=1e-6)


def test_clips_tokenizers_come_along(tmp_path, monkeypatch, caplog):
    # Ids of CLIP's published vocabulary.
    files = clip_vocabulary.tokenizer_files(clip_vocabulary.END)
    if files is None:
        pytest.skip('instant-clip-tokenizer is not installed')
    words = json.loads(files['vocab.json'])
    assert len(words) == 49408
    known = {'!': 0, 'a</w>': 320, 'photo</w>': 1125, 'hello</w>': 3306, '<|endoftext|>': 49407}
    assert {word: words[word] for word in known} == known
    pairs = files['merges.txt'].splitlines()
    assert pairs[:3] == ['#version: 0.2', 'i n', 't h']
    assert all(pair.replace(' ', '') in words for pair in pairs[1:])

    weights = shrunk.checkpoint('sd_xl_base')
    for index, at in enumerate(('transformer.text_model.embeddings', 'model')):
        name = f'conditioner.embedders.{index}.{at}.token_embedding.weight'
        weights[name] = np.zeros((49408, weights[name].shape[1]), np.float16)
    hints = dict(num_head_channels=1, text_head_width=1)
    write_diffusers(tmp_path / 'with', weights, hints=hints)
    index = json.loads((tmp_path / 'with/model_index.json').read_text())
    for name, padding in (('tokenizer', '<|endoftext|>'), ('tokenizer_2', '!')):
        assert index[name] == ['transformers', 'CLIPTokenizer']
        assert json.loads((tmp_path / 'with' / name / 'vocab.json').read_text()) == words
        config = json.loads((tmp_path / 'with' / name / 'tokenizer_config.json').read_text())
        assert (config['pad_token'], config['model_max_length']) == (padding, 77)
    monkeypatch.setattr(clip_vocabulary, 'merges', lambda: None)
    write_diffusers(tmp_path / 'without', weights, hints=hints)
    assert json.loads((tmp_path / 'without/model_index.json').read_text())['tokenizer'] == [
        None,
        None,
    ]
    assert 'text_encoder_2: no tokenizer was written' in caplog.text


def test_shards_half_precision_and_old_files(folders, tmp_path, monkeypatch):
    weights, folder = folders['sd_xl_base']
    copy = shutil.copytree(folder, tmp_path / 'copy')
    unet = safetensors.numpy.load_file(copy / 'unet/diffusion_pytorch_model.safetensors')
    names = sorted(unet)
    shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
    for file, some in shards.items():
        safetensors.numpy.save_file({k: unet[k] for k in some}, copy / 'unet' / file)
    placed = {k: file for file, some in shards.items() for k in some}
    index = copy / 'unet/diffusion_pytorch_model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': placed}))
    (copy / 'unet/diffusion_pytorch_model.safetensors').unlink()
    for file in ('vae/diffusion_pytorch_model', 'text_encoder/model'):
        (copy / f'{file}.safetensors').rename(copy / f'{file}.fp16.safetensors')
    old = copy / 'text_encoder_2/model.safetensors'
    torch_archives.save(
        old.with_name('pytorch_model.bin'), safetensors.numpy.load_file(old), monkeypatch
    )
    old.unlink()
    assert_bits(open_tensors(copy), weights)
    (copy / 'unet/b.safetensors').unlink()
    with pytest.raises(UserError, match=r'there is no checkpoint file .*unet/b\.safetensors'):
        open_tensors(copy)
    (copy / 'vae/diffusion_pytorch_model.fp16.safetensors').unlink()
    index.unlink()
    with pytest.raises(UserError, match='unet has no weights'):
        open_tensors(copy)


def test_text_towers_as_transformers_5_names_them(folders, tmp_path):
    weights, folder = folders['sd_xl_base']
    copy = shutil.copytree(folder, tmp_path / 'copy')
    file = copy / 'text_encoder/model.safetensors'
    plain = {k.removeprefix('text_model.'): x for k, x in safetensors.numpy.load_file(file).items()}
    plain['embeddings.position_ids'] = np.arange(77)
    write_sgm(file, plain)
    assert_bits(open_tensors(copy), weights)


def test_what_does_not_fit_is_named(folders, tmp_path):
    weights, folder = folders['sd_xl_base']
    with pytest.raises(UserError, match='diffusers has no place for 1 tensors, such as new'):
        write_diffusers(
            tmp_path / 'a', {**weights, 'model.diffusion_model.new.weight': np.zeros(1)}
        )
    with pytest.raises(UserError, match='is there already'):
        write_diffusers(folder, weights)
    with pytest.raises(UserError, match=r"hints: unknown key 'heads'; known keys: .*num_heads"):
        write_diffusers(tmp_path / 'a', weights, hints={'heads': 3})
    alone = {k: x for k, x in weights.items() if k.startswith('model.')}
    with pytest.raises(UserError, match='diffusers has no pipeline'):
        write_diffusers(tmp_path / 'a', alone)
    assert list(tmp_path.iterdir()) == []
    copy = shutil.copytree(folder, tmp_path / 'copy')
    file = copy / 'vae/diffusion_pytorch_model.safetensors'
    write_sgm(file, {**safetensors.numpy.load_file(file), 'more': np.zeros(1)})
    with pytest.raises(UserError, match='copy/vae: sgm has no place for 1 tensors, such as more'):
        read(copy)
    text = (folder / 'model_index.json').read_text()
    (copy / 'model_index.json').write_text(text.replace('"unet"', '"prior"'))
    with pytest.raises(UserError, match='StableDiffusionXLPipeline, without unet: no model of sgm'):
        read(copy)
    (copy / 'model_index.json').write_text('{"unet": ')
    with pytest.raises(UserError, match=r'model_index\.json cannot be read'):
        read(copy)


def test_levels_that_diffusers_does_not_have(tmp_path):
    svd = shrunk.checkpoint('svd')
    third = [k for k in svd if re.search(r'(down\.\d\.block\.1|up\.\d\.block\.2)\.', k)]
    few = {k: x for k, x in svd.items() if k not in third}
    hints = dict(num_head_channels=1, vision_head_width=1)
    with pytest.raises(UserError, match='a temporal decoder of 2 blocks to a level alone, not 1'):
        write_diffusers(tmp_path / 'a', few, hints=hints)
    base = shrunk.checkpoint('sd_xl_base')
    some = {k: x for k, x in base.items() if '.input_blocks.5.1.' not in k}
    with pytest.raises(UserError, match='no network in whose levels only some blocks attend'):
        write_diffusers(tmp_path / 'a', some, hints=hints)
    flat = {k: x for k, x in base.items() if '.middle_block.1.transformer_blocks.9.' not in k}
    with pytest.raises(
        UserError, match=r'one depth for the last level \(10\) and the middle \(9\)'
    ):
        write_diffusers(tmp_path / 'a', flat, hints=hints)
    assert list(tmp_path.iterdir()) == []


def test_models_without_a_pipeline():
    svd = golden.manifest('svd')
    sv3d = {k.replace('embedders.3.', 'embedders.1.') for k in svd}
    with pytest.raises(UserError, match=r'A \.safetensors file holds any'):
        layout_of(sv3d)
