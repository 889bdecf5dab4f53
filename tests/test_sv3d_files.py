"""SV3D through files: a small one, by the names of sv3d_p.safetensors, with no encoder in its first stage."""

import golden
import numpy as np
import pytest

import sgm_jax
from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop import open_tensors, to_sgm, write_sgm
from sgm_jax.tools import conversions, convert

FRAMES, SIZE = 3, 16
_ENCODER = 'conditioner.embedders.1.encoder.encoder.'


def small():
    """sv3d.py:p with fewer of everything, and all its parts: latents, both encoders, cameras."""
    config = load_config('configs/sv3d.py:p')
    image, given, *others = config.model.conditioner
    width = 32
    clip = {
        'embed_dim': width,
        'vision_cfg': dict(image_size=16, layers=1, width=width, head_width=32, patch_size=8),
        'text_cfg': dict(context_length=1, vocab_size=1, width=width, heads=1, layers=0),
    }
    coder = dict(resolution=16, ch=32, ch_mult=(1, 2), num_res_blocks=1)
    encoder = given['encoder']
    encoder = {**encoder, 'ddconfig': {**encoder['ddconfig'], **coder}}
    config.model.conditioner = ({**image, 'arch': clip}, {**given, 'encoder': encoder}, *others)
    config.model.first_stage.decoder.update(coder)
    config.model.network.update(
        model_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_head_channels=32,
        context_dim=width,
        use_checkpoint=False,
    )
    config.model.task.num_frames = config.data.num_frames = FRAMES
    config.sample.update(steps=2, height=SIZE, width=SIZE, frame_ratio=0.0)
    return config


@pytest.fixture(scope='module')
def config():
    return small()


@pytest.fixture(scope='module')
def file(config, tmp_path_factory):
    """Made-up weights, as a published file would be."""
    path = tmp_path_factory.mktemp('sv3d') / 'sv3d_p.safetensors'
    shapes = {k: x.shape for k, x in to_sgm(build(config).structure.module()).items()}
    write_sgm(path, {k: golden.generate(k, shape) for k, shape in shapes.items()})
    return path


@pytest.fixture(scope='module')
def model(config, file):
    return sgm_jax.load(file, config)


def test_the_encoder_is_where_the_published_file_has_it(file):
    names = set(open_tensors(file))
    around = {name for name in names if not name.startswith('model.diffusion_model.')}
    assert around <= set(golden.manifest('sv3d_p'))
    assert not [name for name in names if name.startswith('first_stage_model.encoder')]
    assert [name for name in names if name.startswith(_ENCODER)]


def test_a_file_samples_and_its_conditioners_encoder_encodes(file, model):
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    views = model.sample(image=picture, elevations=[10, 20, 30])
    assert views.shape == (1, FRAMES, SIZE, SIZE, 3)
    np.testing.assert_array_equal(views[0, -1], picture)
    before = model.encode(picture[None])
    assert before.shape == (1, SIZE // 2, SIZE // 2, 4)
    # Another encoder of the conditioner's is another encoder of the model's.
    tensors = open_tensors(file)
    other = file.with_name('other.safetensors')
    name = f'{_ENCODER}conv_out.bias'
    write_sgm(other, {k: tensors[k] + 1 if k == name else tensors[k] for k in tensors})
    assert np.abs(sgm_jax.load(other, small()).encode(picture[None]) - before).max() > 0.01


def test_through_convert_and_back(file, config, model, tmp_path):
    source = conversions.open_source(file)
    write_sgm(tmp_path / 'half.safetensors', conversions.cast(source.tensors, np.dtype('float16')))
    half = open_tensors(tmp_path / 'half.safetensors')
    want = open_tensors(file)
    assert set(half) == set(want)
    for name in half:
        np.testing.assert_array_equal(half[name], want[name].astype(np.float16))
    conversions.write_workdir(tmp_path / 'run', conversions.open_source(file, config=config))
    picture = np.full((SIZE, SIZE, 3), 90, np.uint8)
    again = sgm_jax.load(tmp_path / 'run').sample(image=picture, seed=3)
    np.testing.assert_array_equal(again, model.sample(image=picture, seed=3))
    back = conversions.open_source(tmp_path / 'run').tensors
    assert set(back) == set(want)
    assert all((back[name] == want[name]).all() for name in want)


def test_there_is_no_diffusers_folder_of_it(file, tmp_path):
    assert convert.kind_of(f'{tmp_path}/folder', 'diffusers') == 'diffusers'
    from sgm_jax.interop import write_diffusers

    with pytest.raises(UserError, match=r'A \.safetensors file holds any'):
        write_diffusers(tmp_path / 'folder', open_tensors(file))
    assert not (tmp_path / 'folder').exists()
