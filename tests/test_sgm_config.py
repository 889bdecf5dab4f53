"""sgm's YAML files become configs of ours: the same networks, noise, conditions and recipes."""

import golden
import pytest
import sgm_yamls as yamls

from sgm_jax.config import load_config, plain
from sgm_jax.engines import AutoencodingEngine, build
from sgm_jax.errors import UserError
from sgm_jax.interop import load_sgm_config, to_sgm

SHAPES = {
    'sd_xl_base': yamls.sdxl_base,
    'sd_xl_refiner': yamls.sdxl_refiner,
    'sd_2_1': yamls.sd_2_1_768,
    'svd': yamls.svd,
}


@pytest.mark.parametrize('name', SHAPES)
def test_published_models_have_the_names_of_their_files(name, tmp_path):
    config = load_sgm_config(yamls.write(tmp_path / f'{name}.yaml', model=SHAPES[name]()))
    got = {k: list(v.shape) for k, v in to_sgm(build(config).structure.shape).items()}
    assert got == golden.manifest(name)


@pytest.mark.parametrize(
    ('make', 'own'),
    [
        (yamls.sdxl_base, 'sdxl_base.py'),
        (yamls.sdxl_refiner, 'sdxl_refiner.py'),
        (yamls.sd_2_1_768, 'sd21.py:768v'),
        (yamls.svd, 'svd.py'),
    ],
)
def test_they_are_sampled_as_our_own_configs_are(make, own, tmp_path):
    engine = build(load_sgm_config(yamls.write(tmp_path / 'x.yaml', model=make())))
    ours = build(load_config(f'configs/{own}'))
    assert engine.denoiser == ours.denoiser
    assert engine.objective.weighting == ours.objective.weighting
    got, wanted = engine.sampling, ours.sampling
    assert (got.sampler, got.discretization) == (wanted.sampler, wanted.discretization)
    assert type(got.guider) is type(wanted.guider)
    assert set(got.zero) == set(wanted.zero)
    assert (got.height, got.width) == (wanted.height, wanted.width)


def test_a_toy_recipe_is_our_toy_recipe(tmp_path):
    data = {'target': 'sgm.data.mnist.MNISTLoader', 'params': {'batch_size': 512, 'num_workers': 1}}
    model = {**yamls.mnist_cond(), 'base_learning_rate': '1.0e-4'}
    config = load_sgm_config(yamls.write(tmp_path / 'mnist.yaml', model=model, data=data))
    ours = load_config('configs/mnist.py:cond')
    engine, wanted = build(config), build(ours)
    assert engine.denoiser == wanted.denoiser
    assert engine.objective == wanted.objective
    assert engine.sampling == wanted.sampling
    assert plain(config.data) == plain(ours.data)
    assert config.optimizer.learning_rate == 1e-4
    assert config.train.batch_size == 512
    assert config.train.ema_decay == 0.0
    shapes = lambda engine: {k: v.shape for k, v in to_sgm(engine.structure.shape).items()}
    assert shapes(engine) == shapes(wanted)


def test_the_loss_and_the_averages_are_as_the_file_says(tmp_path):
    model = yamls.mnist_cond()
    model['params']['loss_fn_config']['params']['loss_type'] = 'l1'
    model['params'].update(use_ema=True, ema_decay_rate=0.99)
    config = load_sgm_config(yamls.write(tmp_path / 'l1.yaml', model=model))
    assert build(config).objective.kind == 'l1'
    assert config.train.ema_decay == 0.99


def test_the_oldest_recipe_is_read(tmp_path):
    text = yamls.write(
        tmp_path / 'old.yaml', model=yamls.clipl_legacy(), **yamls.training_parts(48)
    ).read_text()
    (tmp_path / 'old.yaml').write_text(text.replace('sgm.', 'ldm.'))
    config = load_sgm_config(tmp_path / 'old.yaml')
    engine, ours = build(config), build(load_config('configs/txt2img_clipl.py:legacy_ucg'))
    assert engine.structure.shape.conditioner.slots == ours.structure.shape.conditioner.slots
    assert engine.objective == ours.objective
    assert engine.sampling.guider == ours.sampling.guider
    assert config.model.first_stage_checkpoint == ''
    assert config.schedule.warmup_steps == 10_000
    assert (config.train.batch_size, config.train.accumulate) == (48, 2)
    assert (config.train.image_every, config.train.checkpoint_every) == (700, 5000)
    assert (config.data.height, config.data.width, config.data.text) == (192, 192, 'sidecar')


def test_an_autoencoder_follows_its_references(tmp_path):
    path = yamls.write(
        tmp_path / 'ae.yaml', model=yamls.attnfree_logvar(), **yamls.training_parts(8)
    )
    config = load_sgm_config(path)
    engine = build(config)
    assert isinstance(engine, AutoencodingEngine)
    ours = build(load_config('configs/autoencoder_attnfree_f4.py'))
    assert engine.objective.disc_start == ours.objective.disc_start == 20001
    assert engine.objective.regularization_weights == {'kl_loss': 1.0}
    shapes = lambda engine: {k: v.shape for k, v in to_sgm(engine.structure.shape).items()}
    assert shapes(engine)['decoder.conv_in.weight'] == (512, 4, 3, 3)
    assert {k: v for k, v in shapes(engine).items() if 'quant_conv' not in k} == {
        k: v for k, v in shapes(ours).items() if 'quant_conv' not in k
    }
    assert config.optimizer.learning_rate == 4.5e-6
    assert config.train.batch_size == 8


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda m: m.update(target='sgm.models.Other'), "model.target: unknown name 'Other'"),
        (
            lambda m: m['params']['network_config'].update(target='x.Transformer'),
            "network_config.target: unknown name 'Transformer'; choose one of: UNetModel",
        ),
        (lambda m: m['params'].pop('denoiser_config'), "missing 'denoiser_config'"),
        (
            lambda m: m['params']['sampler_config'].update(target='x.Leapfrog'),
            "sampler_config.target: unknown name 'Leapfrog'",
        ),
        (lambda m: m['params'].update(network_config='${nowhere.at.all}'), 'refers to nothing'),
    ],
)
def test_what_is_not_known_is_named(change, words, tmp_path):
    model = yamls.mnist_cond()
    change(model)
    path = yamls.write(tmp_path / 'bad.yaml', model=model)
    with pytest.raises(UserError, match=words):
        load_sgm_config(path)


def test_what_is_no_config_is_named(tmp_path):
    with pytest.raises(UserError, match='there is no config file'):
        load_sgm_config(tmp_path / 'none.yaml')
    (tmp_path / 'list.yaml').write_text('- 1\n- 2\n')
    with pytest.raises(UserError, match="no 'model' in it"):
        load_sgm_config(tmp_path / 'list.yaml')
    (tmp_path / 'broken.yaml').write_text('model: {a: [1,\n')
    with pytest.raises(UserError, match='cannot be read as YAML'):
        load_sgm_config(tmp_path / 'broken.yaml')
