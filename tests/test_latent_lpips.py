"""A loss between latents against the same in PyTorch (benchmarks/torch_latent_lpips.py)."""

import json

import gan_model
import golden
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from gan_case import CASE, LATENT_CASES, latents, parameters

from sgm_jax.engines.objectives import LatentLPIPS
from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.interop.sgm import load
from sgm_jax.interop.targets import build
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.lpips import LPIPS

DECODER = 'sgm.modules.diffusionmodules.model.Decoder'


@pytest.mark.parametrize('name', LATENT_CASES)
def test_beside_pytorch(name):
    options, side = LATENT_CASES[name]
    wanted = json.loads((golden.FOLDER / 'latent_lpips.json').read_text())[name]
    node = dict(gan_model.config().model.first_stage.decoder)
    names = to_sgm(nnx.eval_shape(lambda: build(DECODER, node)))
    decoder = from_sgm(DECODER, node, parameters({k: list(v.shape) for k, v in names.items()}))
    weights = parameters(CASE['lpips_shapes'])
    weights = {k: abs(v) if k.startswith('lin') else v for k, v in weights.items()}
    lpips = load(nnx.eval_shape(lambda: LPIPS(rngs=Keys(0))), weights)
    graphdef, state = nnx.split({'decoder': decoder, 'lpips': lpips})
    z, predictions, x = map(jnp.asarray, latents(side))

    def loss(predictions, state):
        parts = nnx.merge(graphdef, state)
        return LatentLPIPS(**options)(
            z, predictions, x, decode=parts['decoder'], lpips=parts['lpips']
        )

    run = golden.quick_jit(jax.value_and_grad(loss, has_aux=True))
    (value, logs), gradient = run(predictions, state)
    golden.assert_close(value, wanted['loss'], 1e-4)
    golden.assert_close(jnp.linalg.norm(gradient), wanted['gradient_norm'], 1e-4)
    golden.assert_close(gradient[1, 3, 4, 2], wanted['gradient'], 1e-3)
    assert set(logs) == {'latent_l2_loss', *(key for key in wanted if key.startswith('percept'))}
    for key in set(logs) & set(wanted):
        golden.assert_close(logs[key], wanted[key], 1e-4)
