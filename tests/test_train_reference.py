"""Three AdamW steps of small networks against the PyTorch reference: losses, gradients, weights, averages."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sgm_jax.diffusion.denoiser import Denoiser, DiscreteDenoiser
from sgm_jax.diffusion.loss import StandardDiffusionLoss
from sgm_jax.diffusion.scaling import EpsScaling, VScalingWithEDMcNoise
from sgm_jax.diffusion.sigma_sampling import EDMSampling
from sgm_jax.diffusion.weighting import EpsWeighting, VWeighting
from sgm_jax.engines.protocol import Gradients, Players
from sgm_jax.interop import from_sgm, to_sgm
from sgm_jax.training.optimizers import make_optimizer
from sgm_jax.training.state import Average, Optimizers, apply_gradients, fresh

VIDEO = 'sgm.modules.diffusionmodules.video_model.VideoUNet'
IMAGE = 'sgm.modules.diffusionmodules.openaimodel.UNetModel'
CASES = {
    'train_svd': (VIDEO, Denoiser(scaling=VScalingWithEDMcNoise()), VWeighting()),
    'train_sdxl': (IMAGE, DiscreteDenoiser(scaling=EpsScaling()), EpsWeighting()),
}


@pytest.mark.parametrize('case', CASES)
def test_three_steps(case):
    target, denoiser, weighting = CASES[case]
    config = golden.config(case)
    model = from_sgm(target, config['network'], golden.state_dict(case))
    graphdef, params = nnx.split(model)
    inputs, outputs = golden.arrays(case)
    frames = config['num_video_frames']
    video = dict(num_frames=frames) if frames else {}
    objective = StandardDiffusionLoss(sigma_sampling=EDMSampling(), weighting=weighting)
    node = dict(
        name='adamw',
        learning_rate=config['lr'],
        weight_decay=config['weight_decay'],
        b1=config['betas'][0],
        b2=config['betas'][1],
        eps=config['eps'],
    )
    optimizer = make_optimizer(node, optax.constant_schedule(config['lr']))
    optimizers = Optimizers(main=optimizer, adversary=optax.identity())
    average = Average(limit=config['ema_decay'])

    def losses_of(params, batch):
        network = nnx.merge(graphdef, params)

        def apply(x, c_noise, cond, **inputs):
            if 'concat' in cond:
                x = jnp.concatenate([x, cond['concat']], -1)
            return network(x, c_noise, cond['crossattn'], cond['vector'], **inputs)

        denoise = lambda x, sigma, cond: denoiser(apply, x, sigma, cond, **video)
        losses, _ = objective(
            None, denoise, batch['x'], batch, sigma=batch['sigma'], noise=batch['noise']
        )
        return losses.mean(), losses

    @functools.partial(golden.quick_jit)
    def step(state, batch):
        (_, losses), gradients = jax.value_and_grad(losses_of, has_aux=True)(state.params, batch)
        norm = optax.tree.norm(gradients)
        found = Gradients(params=gradients, logs={})
        return apply_gradients(state, found, optimizers, average), losses, norm

    state = fresh(Players(params=nnx.to_pure_dict(params)), optimizers)
    maps = ('x', 'noise', 'concat')
    for k in range(3):
        batch = {n: golden.last(v[k]) if n in maps else v[k] for n, v in inputs.items()}
        state, losses, norm = step(state, batch)
        golden.assert_close(losses, outputs[f'loss_{k}'], 1e-4)
        golden.assert_close(norm, outputs[f'grad_norm_{k}'], 1e-4)
    named = lambda params: to_sgm(nnx.merge(graphdef, params))
    after, ema = named(state.params), named(state.ema_params)
    checked = [name.removeprefix('after.') for name in outputs if name.startswith('after.')]
    assert len(checked) == 4
    for name in checked:
        golden.assert_close(after[name], outputs[f'after.{name}'], 1e-4)
        golden.assert_close(ema[name], outputs[f'ema.{name}'], 1e-4)
    assert int(state.step) == 3
    assert np.isfinite(norm)
