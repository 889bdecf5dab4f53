"""Regularizers between encoder and decoder, alone and in sgm's AutoencodingEngine."""

import golden
import jax
import numpy as np
import pytest

from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.interop.targets import make
from sgm_jax.networks.regularizers import DiagonalGaussianRegularizer, IdentityRegularizer

QUANTIZE = 'sgm.modules.autoencoding.regularizers.quantize'
ENGINE = 'sgm.models.autoencoder.AutoencodingEngine'
CODER = {
    'ch': 32,
    'out_ch': 3,
    'ch_mult': [1, 1],
    'num_res_blocks': 1,
    'attn_resolutions': [],
    'in_channels': 3,
    'resolution': 8,
    'z_channels': 4,
    'double_z': False,
}


def engine(regularizer, **params):
    node = lambda name: {'target': f'sgm.modules.diffusionmodules.model.{name}', 'params': CODER}
    return {
        'encoder_config': node('Encoder'),
        'decoder_config': node('Decoder'),
        'regularizer_config': {'target': regularizer, 'params': params},
    }


@pytest.mark.parametrize(
    ('kind', 'params', 'names'),
    [
        ('VectorQuantizer', {'n_e': 10, 'e_dim': 4}, {'embedding.weight'}),
        (
            'EMAVectorQuantizer',
            {'n_embed': 10, 'embedding_dim': 4, 'beta': 0.25},
            {'embedding.weight', 'embedding.cluster_size', 'embedding.embed_avg'},
        ),
        (
            'GumbelQuantizer',
            {'num_hiddens': 4, 'embedding_dim': 4, 'n_embed': 10},
            {'proj.weight', 'proj.bias', 'embed.weight'},
        ),
    ],
)
def test_an_engine_keeps_its_codebook(kind, params, names):
    config = engine(f'{QUANTIZE}.{kind}', **params)
    weights = golden.parameters({n: x.shape for n, x in to_sgm(make(ENGINE, config)).items()})
    found = {name for name in weights if name.startswith('regularization.')}
    assert found == {f'regularization.{name}' for name in names}
    module = from_sgm(ENGINE, config, weights)
    returned = to_sgm(module)
    assert returned.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(returned[name], array, err_msg=name)
    z_q, _ = module.regularization(np.ones((1, 4, 4, 4), np.float32))
    assert z_q.shape == (1, 4, 4, 4)
    del weights[found.pop()]
    with pytest.raises(ValueError, match='1 missing: regularization'):
        from_sgm(ENGINE, config, weights)


def test_an_engine_without_a_codebook_has_no_such_names():
    plain = engine('sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer')
    module = make(ENGINE, plain)
    assert module.regularization is None
    assert not any(name.startswith('regularization') for name in to_sgm(module))
    with pytest.raises(ValueError, match='regularizer_config'):
        make(ENGINE, engine(f'{QUANTIZE}.Quantizer'))
    with pytest.raises(ValueError, match="unknown key 'n_codes'"):
        make(ENGINE, engine(f'{QUANTIZE}.VectorQuantizer', n_codes=10, e_dim=4))


def test_regularizers_without_weights():
    moments = np.random.default_rng(0).standard_normal((2, 3, 3, 8)).astype(np.float32)
    mean, logvar = np.split(moments, 2, -1)
    key = jax.random.key(0)
    regularizer = DiagonalGaussianRegularizer()
    z, logs = golden.quick_jit(regularizer)(moments)
    np.testing.assert_array_equal(z, mean)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum() / 2
    golden.assert_close(logs['kl_loss'], kl)
    np.testing.assert_array_equal(DiagonalGaussianRegularizer(sample=False)(moments, key)[0], mean)
    many = np.tile(np.float32([1, -2, 0.5, -1]), (4000, 1))
    z, _ = golden.quick_jit(lambda x, key: regularizer(x, key, train=True))(many, key)
    np.testing.assert_allclose(z.mean(0), [1, -2], atol=0.1)
    np.testing.assert_allclose(z.std(0), np.exp([0.25, -0.5]), rtol=0.05)
    z, logs = IdentityRegularizer()(moments, key, train=True)
    assert z is moments
    assert logs == {}
    assert hash(regularizer) == hash(DiagonalGaussianRegularizer())
