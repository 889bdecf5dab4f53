"""From words, classes and pictures to pictures: what changes them, what does not, and what cannot be."""

import dataclasses

import jax
import numpy as np
import pytest
import smallest
import tiny
import tiny_pictures

import sgm_jax
from sgm_jax.config import load_config
from sgm_jax.engines import DiffusionEngine, build
from sgm_jax.errors import UserError
from sgm_jax.sampling import media
from sgm_jax.sampling.images import size_of
from sgm_jax.sampling.load import LoadedModel
from sgm_jax.sampling.run import run
from sgm_jax.training.loop import train

SIZE = tiny_pictures.SIZE


@pytest.fixture(scope='module')
def base():
    return tiny_pictures.model('sdxl_base')


@pytest.fixture(scope='module')
def refiner():
    return tiny_pictures.model('sdxl_refiner')


@pytest.fixture(scope='module')
def digits() -> LoadedModel:
    config = load_config('configs/mnist.py:tiny')
    config.sample.update(steps=2, height=8, width=8)
    config.model.network.update(model_channels=32, channel_mult=(1, 1))
    engine = build(config)
    params = jax.jit(engine.init)(jax.random.key(0))
    wave = lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape)
    return LoadedModel(engine=engine, params=jax.tree.map(wave, params), frozen={})


@pytest.fixture(scope='module')
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def differ(a, b) -> bool:
    return bool((a != b).any())


def test_each_picture_has_the_noise_of_its_seed_alone(base):
    images = base.sample(prompt=['a fox', 'a cat'], count=2, seed=5)
    assert images.shape == (4, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    alone = base.sample(prompt='a cat', seed=8)
    assert np.abs(images[3].astype(int) - alone[0]).max() <= 1
    assert differ(images[0], images[1])


def test_batches_do_not_change_the_pictures(base):
    together = base.sample(prompt='a fox', count=3)
    apart = base.sample(prompt='a fox', count=3, batch=2)
    assert apart.shape == together.shape
    assert np.abs(apart.astype(int) - together).max() <= 1


@pytest.mark.parametrize(
    'told',
    [
        dict(prompt='a cat'),
        dict(negative_prompt='blurred'),
        dict(seed=1),
        dict(steps=3),
        dict(scale=1.5),
        dict(original_size=(100, 200)),
        dict(crop=(0, 300)),
        dict(target_size=(2000, 100)),
        dict(sampler='heun_edm'),
        dict(sampler='dpmpp2m', steps=4),
        dict(discretization='edm'),
        dict(guider='identity'),
    ],
)
def test_whatever_is_told_changes_the_picture(base, told):
    assert differ(base.sample(**{'prompt': 'a fox', **told}), base.sample(prompt='a fox'))


def test_guidance_of_one_is_no_guidance(base):
    one = base.sample(prompt='a fox', scale=1.0)
    none = base.sample(prompt='a fox', guider='identity')
    assert np.abs(one.astype(int) - none).max() <= 1


def test_words_and_numbers_do_not_compile_again(base, compilations):
    base.sample(prompt='a fox', count=2)
    with compilations() as count:
        base.sample(
            prompt=['something else', 'entirely'],
            negative_prompt='not this',
            seed=9,
            steps=5,
            scale=2.0,
            original_size=(10, 10),
        )
    assert count() == 0


def test_a_picture_of_strength_nought_is_the_picture(base, picture):
    same = base.sample(prompt='a fox', image=picture, strength=0.0)
    np.testing.assert_array_equal(same[0], picture)
    near = base.sample(prompt='a fox', image=picture, strength=0.4, steps=10)
    far = base.sample(prompt='a fox', image=picture, strength=0.9, steps=10)
    distance = lambda x: np.abs(x[0].astype(float) - picture).mean()
    assert 0 < distance(near) < distance(far)


def test_strength_counts_steps_as_sgm_does(base, picture):
    calls = []
    base.sample(
        prompt='a fox',
        image=picture,
        strength=0.5,
        steps=10,
        progress=lambda done, total: calls.append((done, total)),
    )
    # Of 10 steps' 11 sigmas, zero included, the last int(0.5 * 11) = 5 are 4 steps.
    assert calls == [(n, 4) for n in range(1, 5)]


def test_a_refiner_takes_the_last_steps(base, refiner):
    calls = []
    handed = base.sample(
        prompt='a fox',
        refiner=refiner,
        handoff=0.25,
        steps=8,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(n, 8) for n in range(1, 9)]
    alone = base.sample(prompt='a fox', steps=8)
    assert differ(handed, alone)
    # Nothing handed off is base alone; and the halves of one model are the whole.
    np.testing.assert_array_equal(
        base.sample(prompt='a fox', refiner=refiner, handoff=0.0, steps=8), alone
    )
    halves = base.sample(prompt='a fox', refiner=base, handoff=0.5, steps=8)
    assert np.abs(halves.astype(int) - alone).max() <= 1


def test_a_refiner_leaves_a_picture_of_strength_nought_as_it_is(base, refiner, picture):
    same = base.sample(prompt='a fox', image=picture, strength=0.0, refiner=refiner)
    np.testing.assert_array_equal(same[0], picture)


def refuse(*_, **__):
    raise AssertionError('the network was run')


def test_what_a_refiner_cannot_do_is_named_before_the_work(base, refiner, monkeypatch):
    video = LoadedModel(engine=build(tiny.config()), params={}, frozen={})
    config = tiny_pictures.config('sdxl_refiner')
    config.model.network.update(channel_mult=(1, 1, 1))
    coarse = dataclasses.replace(refiner, engine=build(config))
    stage = LoadedModel(engine=build(smallest.config()), params={}, frozen={})
    monkeypatch.setattr(DiffusionEngine, 'sample_latents', refuse)
    for other, words in (
        (coarse, 'the refiner: the size 6x10 is not divisible by 4, .* use 8x8'),
        (video, 'the refiner makes videos; give a model of pictures'),
        (stage, 'the refiner is a first stage; give a model of pictures'),
    ):
        with pytest.raises(UserError, match=words):
            base.sample(prompt='a fox', refiner=other, height=6, width=10)


def test_an_aspect_is_a_size_of_both_models(base, refiner):
    config = tiny_pictures.config('sdxl_refiner')
    config.model.network.update(channel_mult=(1, 1, 1))
    coarse = dataclasses.replace(refiner, engine=build(config))
    assert size_of(base, aspect='16:9') == (6, 10)
    assert size_of(base, aspect='16:9', refiner=coarse) == (8, 12)


def test_the_refiner_is_told_its_scores(refiner):
    plain = refiner.sample(prompt='a fox')
    assert differ(refiner.sample(prompt='a fox', aesthetic_score=1.0), plain)
    assert differ(refiner.sample(prompt='a fox', negative_aesthetic_score=9.0), plain)


def test_turbo_takes_one_to_four_steps():
    turbo = tiny_pictures.model('sdxl_turbo')
    images = [turbo.sample(prompt='a fox', steps=steps) for steps in (1, 2, 4)]
    assert differ(images[0], images[1])
    assert differ(images[1], images[2])
    with pytest.raises(UserError, match='num_steps is 5, but this model has 4 levels'):
        turbo.sample(prompt='a fox', steps=5)


def test_classes_are_told(digits):
    images = digits.sample(cls=[3, 7], count=2)
    assert images.shape == (4, 8, 8, 1)
    assert differ(digits.sample(cls=3), digits.sample(cls=7))


def test_a_picture_in_colour_is_grey_to_a_model_of_grey_ones(digits, picture):
    same = digits.sample(cls=3, count=2, image=picture, strength=0.0)
    assert same.shape == (2, 8, 8, 1)
    # ITU-R BT.601.
    luma = picture @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(same[1, ..., 0], luma, atol=1)
    assert differ(digits.sample(cls=3, image=picture, strength=0.9), same[:1])


def test_what_is_no_picture_does_not_begin_from_one(picture):
    config = tiny_pictures.config('sdxl_base')
    config.model.network.update(in_channels=4, out_channels=4)
    model = LoadedModel(engine=build(config), params={}, frozen={})
    with pytest.raises(UserError, match='makes 4 channels, which no picture has'):
        model.sample(prompt='a fox', image=picture)


def test_each_batch_is_given_as_soon_as_it_is_made(base, picture):
    calls = []
    made = base.sample_batches(
        prompt=['a fox', 'a cat'],
        count=2,
        batch=3,
        image=[picture, 255 - picture],
        strength=0.0,
        progress=lambda done, total: calls.append(done),
    )
    first = next(made)
    assert len(first) == 3
    rest = list(made)
    assert [len(images) for images in rest] == [1]
    want = [picture, picture, 255 - picture, 255 - picture]
    np.testing.assert_array_equal(np.concatenate([first, *rest]), want)
    made = base.sample_batches(
        prompt='a fox', count=3, batch=2, progress=lambda *n: calls.append(n)
    )
    next(made)
    assert calls == [(1, 4), (2, 4)]
    # What is wrong is said before the first is asked for.
    with pytest.raises(UserError, match='count is 0'):
        base.sample_batches(prompt='a fox', count=0)


def test_an_aspect_is_a_size(base):
    # SDXL's bucket for 16:9 is 768x1344; this model's side is 8 instead of 1024.
    assert base.sample(prompt='a fox', aspect='16:9').shape[1:3] == (6, 10)


@pytest.mark.parametrize(
    ('wish', 'words'),
    [
        (dict(prompt=None), 'no prompt was given'),
        (dict(prompt=[]), 'no prompt was given'),
        (dict(strength=0.5), 'strength is given without a picture'),
        (dict(image=np.zeros((9, 9, 3), np.uint8), strength=1.5), 'strength is 1.5; give 0'),
        (dict(handoff=-0.1), 'handoff is -0.1'),
        (dict(handoff=0.2), 'handoff is given without a refiner'),
        (dict(decode_chunk=-1), 'decode_chunk is -1; give 1 or more, or 0'),
        (dict(seed=-1), 'seed is -1; give 0 to 4294967295'),
        (dict(seed=2**63), 'seed is 9223372036854775808; give 0 to'),
        (dict(seed=2**32 - 2, count=3), r'seed is 4294967294 \(the last of 3 .* 4294967296\)'),
        (dict(cls=3), 'knows no classes'),
        (dict(steps=0), 'steps is 0'),
        (dict(count=0), 'count is 0'),
        (dict(height=9), 'size 9x8 is not divisible by 2'),
        (dict(aspect='16:9', height=8), 'aspect goes without'),
        (dict(aspect='wide'), 'aspect is .wide.; give WIDTH:HEIGHT'),
        (dict(sampler='euler'), "unknown name 'euler'; choose one of: dpmpp2m"),
        (dict(guider='identity', scale=2.0), 'IdentityGuider has no strength'),
        (dict(fps=7), "unknown key 'fps'"),
        (dict(image=[np.zeros((9, 9, 3), np.uint8)] * 3), '3 pictures were given for 1 prompts'),
    ],
)
def test_impossible_wishes_are_named(base, wish, words):
    with pytest.raises(UserError, match=words):
        base.sample(**{'prompt': 'a fox', **wish})


@pytest.mark.parametrize(
    ('wish', 'words'),
    [
        (dict(), 'no class was given'),
        (dict(cls=10), 'cls is 10; give whole numbers from 0 to 9'),
        (dict(cls=1, prompt='seven'), 'knows no words'),
    ],
)
def test_impossible_classes_are_named(digits, wish, words):
    with pytest.raises(UserError, match=words):
        digits.sample(**wish)


def test_settings_are_in_the_file(tmp_path, picture):
    path = tmp_path / 'deep' / 'fox.png'
    media.write_image(path, picture, settings={'prompt': 'ein Fuchs — süß', 'seed': 3})
    assert media.read_settings(path) == {'prompt': 'ein Fuchs — süß', 'seed': 3}
    np.testing.assert_array_equal(media.read_image(path), picture)


@pytest.mark.parametrize(
    'name',
    [
        'sdxl_base',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ('sdxl_refiner', 'sd21', 'txt2img_clipl')
        ),
    ],
)
def test_tiny_models_train_and_are_sampled_from_their_workdirs(name, tmp_path):
    config = tiny_pictures.config(name)
    config.train.image_every = 2
    result = train(config, tmp_path / 'run')
    assert np.isfinite(result.scalars['loss'])
    model = sgm_jax.load(tmp_path / 'run')
    assert model.sample(prompt='coffee').shape == (1, SIZE, SIZE, 3)
    half = sgm_jax.load(tmp_path / 'run', dtype='bfloat16')
    assert {x.dtype.name for x in jax.tree.leaves(half.params)} == {'bfloat16'}
    close = half.sample(prompt='coffee', seed=2).astype(int) - model.sample(prompt='coffee', seed=2)
    assert np.abs(close).mean() < 3


def test_a_run_of_sample_py_writes_a_grid_and_its_parts(tmp_path, monkeypatch):
    (tmp_path / 'prompts.txt').write_text('a fox\n\n  a cat  \n', encoding='utf-8')
    monkeypatch.setattr(
        'sgm_jax.sampling.load.load', lambda *_, **__: tiny_pictures.model('sdxl_base')
    )
    output = tmp_path / 'out.png'
    wishes = dict(count=2, seed=7, steps=2, refiner='refiner', prompt=None, fps=None)
    run(config=None, checkpoint='x', output=output, prompts=tmp_path / 'prompts.txt', **wishes)
    names = sorted(path.name for path in tmp_path.glob('*.png'))
    assert names == ['out-0.png', 'out-1.png', 'out-2.png', 'out-3.png', 'out.png']
    assert media.read_image(output).shape == (2 * SIZE, 2 * SIZE, 3)
    settings = media.read_settings(tmp_path / 'out-3.png')
    assert (settings['prompt'], settings['seed'], settings['steps']) == ('a cat', 10, 2)
    assert (settings['checkpoint'], settings['refiner']) == ('x', 'refiner')
    alone = tiny_pictures.model('sdxl_base').sample(prompt='a cat', seed=10)
    written = media.read_image(tmp_path / 'out-3.png').astype(int)
    assert np.abs(written - alone[0]).max() <= 1


@pytest.mark.parametrize(
    ('wish', 'words'),
    [
        (dict(prompts='nowhere.txt'), r'nowhere\.txt: cannot read prompts'),
        (dict(prompts='empty.txt'), r'empty\.txt: no prompt in it'),
        (dict(prompts='binary.txt'), r'binary\.txt: cannot read prompts \(not UTF-8 text\)'),
        (dict(prompts='good.txt', prompt='a fox'), '--prompt goes without --prompts'),
        (dict(output='out.mp4'), r'out\.mp4: pictures are written as \.png'),
        (dict(output='out.tiff'), r'out\.tiff: videos are written as'),
        (dict(output=''), 'give --output'),
        (dict(image='nowhere.png'), r'nowhere\.png: no such picture'),
        (dict(num_frames=3), "unknown key 'num_frames'"),
        (dict(mark=True), 'invisible-watermark'),
    ],
)
def test_mistakes_of_sample_py_are_named(wish, words, tmp_path, monkeypatch):
    (tmp_path / 'empty.txt').write_text('\n \n')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'good.txt').write_text('a cat\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        'sgm_jax.sampling.load.load', lambda *_, **__: tiny_pictures.model('sdxl_base')
    )
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    wish = {'output': 'out.png', **wish}
    if 'prompts' not in wish:
        wish['prompt'] = 'a fox'
    with pytest.raises(UserError, match=words):
        run(config=None, checkpoint='x', **wish)
    assert not list(tmp_path.glob('out*'))
