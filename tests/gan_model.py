"""Our side of the small adversarial training of gan_case.py, from its config to its first state."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
from gan_case import CASE, parameters

from sgm_jax.engines.protocol import Players
from sgm_jax.interop import to_sgm
from sgm_jax.interop.sgm import load
from sgm_jax.training.setup import Setup
from sgm_jax.training.state import TrainState, fresh


def config(**train) -> ml_collections.ConfigDict:
    """Trains on synthetic pictures; `train` overrides `config.train`."""
    coder = dict(
        attn_type='none',
        ch=CASE['ch'],
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=40,
        in_channels=3,
        out_ch=3,
        z_channels=CASE['z_channels'],
    )
    result = ml_collections.ConfigDict()
    result.seed = 0
    result.model = {
        'name': 'autoencoding',
        'first_stage': {
            'name': 'autoencoder',
            'encoder': coder,
            'decoder': coder,
            'regularizer': {'name': 'diagonal_gaussian', 'sample': False},
        },
        'loss': {
            'name': 'lpips_with_discriminator',
            'disc_start': 0,
            'disc_weight': CASE['disc_weight'],
            'perceptual_weight': CASE['perceptual_weight'],
            'learn_logvar': True,
            'logvar_init': CASE['logvar_init'],
            'regularization_weights': {'kl_loss': CASE['kl_weight']},
            'alternate': True,
            'discriminator': {'ndf': CASE['ndf'], 'n_layers': CASE['n_layers']},
        },
        'lpips_checkpoint': '',
    }
    result.data = {
        'name': 'synthetic_video',
        'num_frames': 1,
        'height': 40,
        'width': 40,
        'length': 16,
    }
    result.optimizer = {
        'name': 'adamw',
        'learning_rate': CASE['learning_rate'],
        'weight_decay': 0.0,
    }
    result.train = {
        'batch_size': 2,
        'steps': 4,
        'ema_decay': 0.9,
        'log_every': 1,
        'image_every': 0,
        'checkpoint_every': 1,
        'keep': 5,
        **train,
    }
    result.mesh = {'data': -1, 'fsdp': 1}
    return result


def start(setup: Setup) -> tuple[TrainState, dict]:
    """(first state, frozen parts) from parameters made of their names."""
    engine = setup.engine
    fill = lambda structure, prefix='': load(
        structure.module(), _named(to_sgm(structure.module()), prefix)
    )
    params = engine.structure.split(fill(engine.structure))[1]
    _, judge, statistics = engine.adversary.structure.split(fill(engine.adversary.structure))
    lpips = {k: abs(v) if k.startswith('lin') else v for k, v in parameters(LPIPS).items()}
    frozen = {
        'autoencoder': {},
        'perceptual': engine._lpips.split(load(engine._lpips.module(), lpips))[2],
    }
    adversary = engine.init_adversary(jax.random.key(0)).replace(
        params=judge, statistics=statistics
    )
    params['loss'] = {'logvar': jnp.float32(CASE['logvar_init'])}
    players = Players(params=params, adversary=adversary)
    return jax.jit(functools.partial(fresh, optimizers=setup.optimizers))(players), frozen


LPIPS = CASE['lpips_shapes']


def _named(shapes: dict, prefix: str) -> dict:
    return parameters({name: list(x.shape) for name, x in shapes.items()})
