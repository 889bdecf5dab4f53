"""A first stage of whose training only a part is in its workdir, in a diffusion model."""

import golden
import jax
import ml_collections
import numpy as np
import pytest
import tiny
from orbax.checkpoint import v1 as ocp

import sgm_jax
from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop import to_sgm, write_sgm
from sgm_jax.interop.checkpoint_files import write_model
from sgm_jax.networks.layers import Keys
from sgm_jax.training.workdir import open_workdir

SIZE = {'ch': 32, 'ch_mult': (1, 1), 'num_res_blocks': 0, 'z_channels': 4, 'attn_type': 'none'}


def small(name: str) -> ml_collections.ConfigDict:
    config = load_config(f'configs/{name}')
    stage = config.model.first_stage
    stage.embed_dim = SIZE['z_channels']
    for part in ('ddconfig', 'encoder', 'decoder'):
        if part in stage:
            stage[part].update(SIZE)
    return config


@pytest.fixture
def trained(tmp_path):
    """(workdir of a decoder's training, the picture autoencoder it began from, its parameters)."""
    image = build(small('autoencoder_kl_f8.py:tiny'))
    write_model(str(tmp_path / 'vae.safetensors'), image.structure.build(Keys(3)))
    video = small('svd_decoder.py:tiny')
    video.model.checkpoint = str(tmp_path / 'vae.safetensors')
    engine = build(video)
    params = jax.tree.map(lambda x: x + 0.5, engine.pretrained())
    assert set(params) == {'decoder', 'loss'}
    workdir = open_workdir(tmp_path / 'decoder', video)
    ocp.save_checkpointables(workdir / 'checkpoints' / '7', {'ema_params': params})
    return workdir, image, params


def diffusion(workdir) -> ml_collections.ConfigDict:
    config = tiny.config()
    config.model.first_stage = small('svd_decoder.py:tiny').model.first_stage
    config.model.first_stage_checkpoint = str(workdir)
    return config


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_frozen_encoder_comes_from_where_it_came_then(trained, tmp_path):
    workdir, image, params = trained
    found = build(diffusion(workdir)).init_frozen(jax.random.key(0))['first_stage']
    assert_same(found['decoder'], params['decoder'])
    began = image.structure.split(image.structure.build(Keys(3)))[1]
    for part in ('encoder', 'quant_conv', 'post_quant_conv'):
        assert_same(found[part], began[part])

    (tmp_path / 'vae.safetensors').unlink()
    with pytest.raises(UserError, match=r'vae\.safetensors'):
        build(diffusion(workdir)).init_frozen(jax.random.key(0))


def test_it_goes_before_that_of_a_checkpoint_that_is_sampled_from(trained, tmp_path):
    workdir, _, params = trained
    config = diffusion(workdir)
    shapes = {k: x.shape for k, x in to_sgm(build(config).structure.module()).items()}
    checkpoint = tmp_path / 'video.safetensors'
    write_sgm(checkpoint, {name: golden.generate(name, shape) for name, shape in shapes.items()})
    for mesh in (None, {'fsdp': 1}):
        model = sgm_jax.load(checkpoint, config, dtype='bfloat16', mesh=mesh)
        assert_same(model.frozen['first_stage']['decoder'], params['decoder'])
        assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {'bfloat16'}
        devices = {x.sharding for x in jax.tree.leaves(model.frozen['first_stage'])}
        assert all(isinstance(s, jax.sharding.NamedSharding) == bool(mesh) for s in devices)
    config.model.first_stage_checkpoint = ''
    own = sgm_jax.load(checkpoint, config).frozen['first_stage']['decoder']
    pairs = zip(jax.tree.leaves(own), jax.tree.leaves(params['decoder']), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
