"""The adversarial first stage: losses and gradients against the PyTorch reference."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.engines.adversary import Adversary, Discriminator
from sgm_jax.engines.autoencoding import ALONE, GENERATOR, AutoencodingEngine
from sgm_jax.engines.objectives import LPIPSWithDiscriminator
from sgm_jax.engines.protocol import Players
from sgm_jax.engines.structure import Structure
from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.interop.checkpoint_files import write_model
from sgm_jax.interop.sgm import load
from sgm_jax.interop.targets import build as make
from sgm_jax.networks.layers import Buffer, Keys
from sgm_jax.training.step import first_players

DISCRIMINATOR = 'sgm.modules.autoencoding.lpips.model.model.NLayerDiscriminator'


def test_discriminator():
    shapes = golden.cases()['cases']['nlayer_discriminator']['shapes']
    state_dict = golden.parameters(shapes)
    config = golden.config('nlayer_discriminator')
    network = from_sgm(DISCRIMINATOR, config, state_dict)
    returned = to_sgm(network)
    assert returned.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(returned[name], array, err_msg=name)
        assert returned[name].dtype == array.dtype
    inputs, outputs = golden.arrays('nlayer_discriminator')
    x = golden.last(inputs['x'])
    graphdef, state = nnx.split(network)

    @golden.quick_jit
    def run(state, x):
        network = nnx.merge(graphdef, state)
        before, logits = network(x), network(x, train=True)
        return before, logits, nnx.state(network)

    before, logits, after = run(state, x)
    golden.assert_close(before, golden.last(outputs['eval']))
    golden.assert_close(logits, golden.last(outputs['train']))
    after = to_sgm(nnx.merge(graphdef, after))
    for name in outputs:
        if name.startswith('after.'):
            golden.assert_close(after[name.removeprefix('after.')], outputs[name])
    assert after['main.3.num_batches_tracked'] == 1


class Decoded(nnx.Module):
    """A first stage whose latents are given: the reference's run has no encoder."""

    def __init__(self, decoder, z, kl):
        self.decoder, self.z, self.kl = decoder, Buffer(jnp.asarray(z)), kl

    factor = 2
    last_layer = ('decoder', 'conv_out', 'kernel')

    def encode(self, x):
        return None

    def regularized(self, moments, key, train=False):
        return self.z[...], {'kl_loss': jnp.asarray(self.kl)}

    def features(self, z, num_frames=None):
        return self.decoder.features(z)

    def head(self, h, num_frames=None):
        return self.decoder.head(h)

    def decode(self, z, num_frames=None):
        return self.decoder(z)


@pytest.fixture(params=['hinge', 'vanilla'])
def reference(request):
    """(engine, players, frozen, batch, outputs) of a run of sgm's GeneralLPIPSWithDiscriminator."""
    case = f'lpips_with_discriminator_{request.param}'
    config, shapes = golden.config(case), golden.cases()['cases'][case]['shapes']
    inputs, outputs = golden.arrays(case)
    loss = golden.parameters(shapes['loss'])
    part = lambda prefix: {
        k.removeprefix(prefix): v for k, v in loss.items() if k.startswith(prefix)
    }
    objective = LPIPSWithDiscriminator(
        disc_start=config['disc_start'],
        disc_weight=config['disc_weight'],
        disc_factor=config['disc_factor'],
        perceptual_weight=config['perceptual_weight'],
        disc_loss=config['disc_loss'],
        learn_logvar=config['learn_logvar'],
        logvar_init=config['logvar_init'],
        regularization_weights={'kl_loss': config['kl_weight']},
        discriminator=config['discriminator'],
    )
    decoder_name = next(name for name in shapes if name != 'loss')
    decoder = from_sgm(
        'sgm.modules.diffusionmodules.model.Decoder',
        config['decoder'],
        golden.parameters(shapes[decoder_name], 'dec'),
    )
    z = golden.last(inputs['z'])
    target = 'sgm.modules.diffusionmodules.model.Decoder'
    structure = Structure(
        build=lambda keys: Decoded(make(target, config['decoder']), z, config['kl_loss'])
    )
    adversary = Adversary.of(objective)
    engine = AutoencodingEngine(structure=structure, objective=objective, adversary=adversary)
    params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    discriminator = load(adversary.structure.module(), part('discriminator.'))
    lpips = {k: abs(v) if k.startswith('lin') else v for k, v in part('perceptual_loss.').items()}
    frozen = {
        'autoencoder': {'z': jnp.asarray(z)},
        'perceptual': engine._lpips.split(load(engine._lpips.module(), lpips))[2],
    }
    players = Players(
        params={'decoder': params, 'loss': {'logvar': jnp.float32(config['logvar_init'])}},
        adversary=Discriminator(*adversary.structure.split(discriminator)[1:]),
    )
    return engine, players, frozen, {'jpg': golden.last(inputs['x'])}, outputs


def kernel(gradient):
    return np.moveaxis(np.asarray(gradient), (-1, -2), (0, 1))


LOGGED = {
    'loss': 'loss',
    'kl_loss': 'train/kl_loss',
    'loss_total': 'train/loss/total',
    'loss_nll': 'train/loss/nll',
    'loss_rec': 'train/loss/rec',
    'scalars_logvar': 'train/scalars/logvar',
}


def test_losses_and_gradients(reference):
    engine, players, frozen, batch, outputs = reference
    assert [engine.turn(step) for step in (0, 9, 10, 11)] == [
        ALONE,
        ALONE,
        GENERATOR,
        'discriminator',
    ]
    run = lambda turn: golden.quick_jit(
        lambda players, frozen: engine.gradients(turn, players, frozen, batch, None)
    )(players, frozen)
    for when, turn in (('before_start', ALONE), ('after_start', GENERATOR)):
        found = run(turn)
        wanted = lambda name: outputs[f'{when}.opt0.{name}']  # noqa: B023
        for name, ours in LOGGED.items():
            golden.assert_close(found.logs[ours], wanted(name))
        assert ('train/loss/g' in found.logs) == (turn == GENERATOR)
        last = found.params['decoder']['conv_out']['kernel']
        golden.assert_close(kernel(last), wanted('grad_last_layer'), 1e-4)
        golden.assert_close(found.params['loss']['logvar'], wanted('grad_logvar'), 1e-4)
    golden.assert_close(found.logs['train/loss/g'], wanted('loss_g'), 1e-4)
    golden.assert_close(found.logs['train/scalars/d_weight'], wanted('scalars_d_weight'), 1e-4)
    assert found.adversary is None

    found = run('discriminator')
    assert found.params is None
    for name in ('loss_disc', 'logits_real', 'logits_fake'):
        golden.assert_close(
            found.logs[f'train/{name.replace("_", "/")}'], outputs[f'after_start.opt1.{name}']
        )
    first = found.adversary['main'][0]['kernel']
    golden.assert_close(kernel(first), outputs['after_start.opt1.grad_disc_first'], 1e-4)


@pytest.mark.parametrize(
    'name',
    [
        'autoencoder_kl_f8.py',
        'autoencoder_kl_f8.py:8ch',
        'autoencoder_attnfree_f4.py',
        'autoencoder_vq_f8.py',
        'autoencoder_vq_f8.py:tiny',
        'svd_decoder.py',
    ],
)
def test_published_sizes_train(name):
    """Traced at full size: every turn's gradients have the shapes of the parameters."""
    config = load_config(f'configs/{name}')
    engine = build(config)
    key = jax.random.key(0)
    players = jax.eval_shape(lambda: first_players(engine, key))
    lpips = jax.eval_shape(lambda: engine._lpips.init(key)[1])
    frozen = {'autoencoder': engine.structure.abstract[2], 'perceptual': lpips}
    size = (config.data.get('height', 64), config.data.get('width', 64), 3)
    size = (config.data.num_frames, *size) if 'num_frames' in config.data else size
    batch = {'jpg': jax.ShapeDtypeStruct((2, *size), jnp.float32)}
    engine.check({'jpg': np.empty(size)})
    for step in (0, config.model.loss.disc_start, config.model.loss.disc_start + 1):
        turn = engine.turn(step)
        found = jax.eval_shape(
            lambda *args, turn=turn: engine.gradients(turn, *args, key), players, frozen, batch
        )
        for gradients, of in (
            (found.params, players.params),
            (found.adversary, players.adversary.params),
        ):
            if gradients is not None:
                assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, of)


def test_residual_blocks_may_begin_with_nothing():
    config = load_config('configs/autoencoder_kl_f8.py:tiny')
    fresh = {}
    for linear in (False, True):
        config.model.init_linear = linear
        fresh[linear] = jax.jit(build(config).init)(jax.random.key(0))
    flat = [jax.tree.leaves_with_path(fresh[linear]) for linear in (False, True)]
    for (path, plain), (_, found) in zip(*flat, strict=True):
        zero = [getattr(key, 'key', None) for key in path[-2:]] == ['conv2', 'kernel']
        np.testing.assert_array_equal(found, 0 * plain if zero else plain)
        assert not zero or plain.any()


def test_kl_f8_is_the_published_first_stage():
    """SVD's file has SDXL's encoder: kl_f8 has the same names and shapes."""
    wanted = {
        name.removeprefix('first_stage_model.'): tuple(shape)
        for name, shape in golden.manifest('svd').items()
        if name.startswith('first_stage_model.encoder.')
    }
    engine = build(load_config('configs/autoencoder_kl_f8.py'))
    found = {name: x.shape for name, x in to_sgm(engine.structure.module()).items()}
    assert {name: found.get(name) for name in wanted} == wanted


def test_a_picture_decoder_becomes_a_temporal_one(tmp_path):
    image = load_config('configs/autoencoder_kl_f8.py:tiny')
    video = load_config('configs/svd_decoder.py:tiny')
    module = build(image).structure.build(Keys(3))
    write_model(str(tmp_path / 'vae.safetensors'), module)
    video.model.checkpoint = str(tmp_path / 'vae.safetensors')
    engine = build(video)
    params, frozen = engine.pretrained(), engine.init_frozen(jax.random.key(0), training=False)
    names = set(params)
    assert names == {'decoder', 'loss'}
    x = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    z = engine.encode(params, frozen, x)
    np.testing.assert_allclose(
        z, golden.quick_jit(lambda x: module.encode(x)[..., : z.shape[-1]])(x), atol=1e-5
    )
    # Before its last layer, time adds nothing yet: features are those of the frames.
    merged = engine._merge(params, frozen)
    features = golden.quick_jit(lambda z: merged.features(z, num_frames=4))(z)
    of_frames = golden.quick_jit(lambda z: module.features(z))(z)
    np.testing.assert_allclose(features, of_frames, atol=1e-4)


def test_a_codebook_too_large_is_counted(caplog):
    config = load_config('configs/autoencoder_vq_f8.py:tiny')
    config.model.loss.update(perceptual_weight=0.0)
    engine = build(config)
    params = jax.jit(engine.init)(jax.random.key(0))
    x = np.zeros((2, 64, 64, 3), np.float32)
    frozen = engine.init_frozen(jax.random.key(0))
    found = engine.validate(params, frozen, {'jpg': x}, jax.random.key(0))
    assert found['dead_codes'] > 128
    assert 'of 256 codes are dead: none of 128 held-out latents' in caplog.text
