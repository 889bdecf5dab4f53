"""From files to videos: workdirs and sgm files, the same engine from Python, and what cannot be."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import sgm_jax
from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop import checkpoint_files, to_sgm
from sgm_jax.sampling import media


@pytest.fixture(scope='module')
def model(run):
    return sgm_jax.load(run.workdir)


@pytest.fixture(scope='module')
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


@pytest.fixture(scope='module')
def sgm_file(model, tmp_path_factory) -> pathlib.Path:
    """The run's averaged weights as an sgm checkpoint."""
    path = tmp_path_factory.mktemp('sgm') / 'model.safetensors'
    module = model.engine.structure.merge(model.params, model.frozen)
    checkpoint_files.write_model(str(path), module)
    return path


def test_videos_begin_with_pictures_and_depend_on_the_seed_alone(model, picture):
    videos = model.sample(image=[picture, picture[::-1]], seed=3)
    assert videos.shape == (2, tiny.FRAMES, tiny.SIZE, tiny.SIZE, 3)
    assert videos.dtype == np.uint8
    np.testing.assert_array_equal(videos, model.sample(image=[picture, picture[::-1]], seed=3))
    assert (videos != model.sample(image=[picture, picture[::-1]], seed=4)).any()


def test_what_is_told_changes_the_video(model, picture):
    # Four steps of training hardly move the zeros that the last layer starts with.
    moved = jax.tree.map(
        lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), model.params
    )
    model = dataclasses.replace(model, params=moved)
    plain = model.sample(image=picture)
    for told in (dict(fps=25), dict(motion_bucket=10), dict(cond_aug=2.0), dict(steps=4)):
        assert (model.sample(image=picture, **told) != plain).any(), told


def test_numbers_do_not_compile_again(model, picture, compilations):
    model.sample(image=picture)
    with compilations() as count:
        model.sample(image=picture, seed=7, steps=5, fps=20, motion_bucket=3, cond_aug=0.5)
    assert count() == 0


def test_frames_and_size_may_differ_from_training(model, picture):
    calls = []
    video = model.sample(
        image=picture,
        num_frames=3,
        height=24,
        width=16,
        decode_chunk=2,
        steps=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert video.shape == (1, 3, 24, 16, 3)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_an_sgm_file_samples_what_its_workdir_does(run, model, picture, sgm_file):
    from_file = sgm_jax.load(sgm_file, run.config)
    np.testing.assert_array_equal(model.sample(image=picture), from_file.sample(image=picture))
    # Bit for bit, there and back.
    again = to_sgm(from_file.engine.structure.merge(from_file.params, from_file.frozen))
    for name, array in load_file(sgm_file).items():
        np.testing.assert_array_equal(again[name], array)
    assert any(name.startswith('conditioner.embedders.0.open_clip.model.visual.') for name in again)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda t: t.pop('model.diffusion_model.out.2.bias'), '1 missing: .*out.2.bias'),
        (lambda t: t.update(extra=np.zeros(3)), '1 unexpected: extra'),
        (
            lambda t: t.update({'model.diffusion_model.out.2.bias': np.zeros(5, np.float32)}),
            r'1 mis-shaped: model.diffusion_model.out.2.bias \(5,\) instead of \(3,\)',
        ),
    ],
)
def test_a_file_that_does_not_fit_is_listed(run, sgm_file, tmp_path, change, words):
    tensors = load_file(sgm_file)
    change(tensors)
    save_file(tensors, tmp_path / 'bad.safetensors')
    with pytest.raises(UserError, match=words):
        sgm_jax.load(tmp_path / 'bad.safetensors', run.config)


def test_a_cut_file_is_named(run, sgm_file, tmp_path):
    cut = tmp_path / 'cut.safetensors'
    cut.write_bytes(sgm_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r'cut\.safetensors is not a whole \.safetensors file'):
        sgm_jax.load(cut, run.config)


def test_a_workdir_of_another_model_is_named(run):
    config = tiny.config()
    config.model.network.model_channels = 64
    with pytest.raises(UserError, match=r'does not fit the model; .*mis-shaped: .*\(.*32'):
        sgm_jax.load(run.workdir, config)


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / 'note.txt').write_text('hello')
    for path in (tmp_path / 'nothing', tmp_path, tmp_path / 'note.txt'):
        with pytest.raises(UserError, match='neither the workdir of a run'):
            sgm_jax.load(path)
    (tmp_path / 'config.json').write_text('{"model": ')
    with pytest.raises(UserError, match=r'config\.json cannot be read'):
        sgm_jax.load(tmp_path)


def test_a_workdir_without_a_checkpoint_is_named(run, tmp_path):
    (tmp_path / 'config.json').write_text((run.workdir / 'config.json').read_text())
    with pytest.raises(UserError, match='no complete checkpoint yet'):
        sgm_jax.load(tmp_path)


@pytest.mark.parametrize(
    ('told', 'words'),
    [
        (dict(height=17), 'size 17x16 is not divisible by 2, which this model needs; use 16x16'),
        (dict(height=0), 'size 0x16 has no pixels, which this model needs; use 2x16'),
        (dict(width=-16), 'size 16x-16 has no pixels'),
        (dict(seed=-1), 'seed is -1; give 0 to 4294967295'),
        (dict(seed=2**63), 'seed is 9223372036854775808; give 0'),
        (dict(steps=0), 'steps is 0'),
        (dict(num_frames=0), 'num_frames is 0'),
        (dict(decode_chunk=-1), 'decode_chunk is -1'),
        (dict(fps=0), 'fps is 0'),
        (dict(motion_bucket=256), 'motion_bucket is 256'),
        (dict(cond_aug=-0.1), 'cond_aug is -0.1'),
        (dict(image='nowhere.png'), 'nowhere.png: no such picture'),
        (dict(image=[]), 'no picture'),
        (dict(image=np.zeros((4, 4, 3))), 'pictures are uint8'),
    ],
)
def test_impossible_wishes_are_named(model, picture, told, words):
    with pytest.raises(UserError, match=words):
        model.sample(**{'image': picture, **told})


def test_encode_and_decode_of_pixels_change_nothing(model, picture):
    images = np.stack([media.resize_crop(picture, (tiny.SIZE, tiny.SIZE))] * tiny.FRAMES)
    latents = model.encode(images)
    assert (latents.min(), latents.max()) == (
        images.min() / 127.5 - 1,
        pytest.approx(images.max() / 127.5 - 1),
    )
    np.testing.assert_array_equal(model.decode(latents), images)
    with pytest.raises(UserError, match='decode_chunk is -1; give 1 or more'):
        model.decode(latents, decode_chunk=-1)
    config = tiny.config()
    config.sample.decode_chunk = -1
    with pytest.raises(UserError, match='decode_chunk is -1; give 1 or more'):
        build(config)


def test_the_largest_seed_is_one(model, picture):
    largest = model.sample(image=picture, seed=2**32 - 1)
    assert (largest != model.sample(image=picture, seed=0)).any()


def test_a_recognised_file_brings_its_config(monkeypatch, tmp_path):
    # A file with SVD's names and shapes, but no memory for its numbers.
    import golden

    shapes = golden.manifest('svd')

    class Fake(dict):
        shape = staticmethod(lambda name: tuple(shapes[name]))

    monkeypatch.setattr('sgm_jax.sampling.recognise.open_tensors', lambda path: Fake(shapes))
    from sgm_jax.sampling.recognise import config_of

    config = config_of(tmp_path / 'svd.safetensors')
    assert config.to_json() == load_config('configs/svd.py').to_json()
