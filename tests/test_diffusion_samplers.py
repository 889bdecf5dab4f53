"""Samplers: the reference's outputs and call counts, one compilation, the two loops, sane ends."""

import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgm_jax import diffusion
from sgm_jax.diffusion.denoiser import Denoiser, DiscreteDenoiser
from sgm_jax.diffusion.discretization import EDMDiscretization, LegacyDDPMDiscretization
from sgm_jax.diffusion.drivers import sample, sample_scan
from sgm_jax.diffusion.guiders import guide
from sgm_jax.diffusion.samplers import SAMPLERS
from sgm_jax.diffusion.scaling import EpsScaling, VScalingWithEDMcNoise
from sgm_jax.errors import UserError

DENOISERS = {
    'continuous': (Denoiser(scaling=VScalingWithEDMcNoise()), EDMDiscretization(sigma_max=80.0)),
    'discrete': (DiscreteDenoiser(scaling=EpsScaling()), LegacyDDPMDiscretization()),
}


def named_sampler(case):
    options = golden.config('samplers')['samplers'][case]
    return diffusion.make('sampler', {'name': case.removesuffix('_churn'), **options})


def network(x, c_noise, cond):
    wave = 0.05 * jnp.sin(c_noise.astype(jnp.float32))
    shape = (-1, *(1,) * (x.ndim - 1))
    return jnp.tanh(0.7 * x + cond['vector'].mean(1).reshape(shape)) + wave.reshape(shape) * x


@pytest.mark.parametrize('case', golden.config('samplers')['calls'])
def test_samples_are_the_references(case):
    config = golden.config('samplers')
    inputs, want = golden.arrays('samplers')
    sampler_name, denoiser_name, guider_name = case.split('.')
    sampler = named_sampler(sampler_name)
    denoiser, discretization = DENOISERS[denoiser_name]
    options = config['guiders'][guider_name].get('params', {})
    guider_name = 'vanilla_cfg' if guider_name == 'cfg' else guider_name
    scales = diffusion.make('guider', {'name': guider_name, **options}).scales()
    cond = {'vector': jnp.asarray(inputs['vector'])}
    uncond = {'vector': jnp.zeros_like(inputs['vector'])}
    calls = []

    def denoise(x, sigma, cond):
        calls.append(sigma)
        return denoiser(network, x, sigma, cond)

    def step(carry, scalars, noise):
        guided = lambda x, sigma: guide(denoise, x, sigma, cond, uncond, scales)
        return sampler.step(carry, guided, scalars, noise)

    sigmas = discretization.sigmas(config['steps'])
    # The reference draws only where there is noise to add; here every call is offered some.
    adds = sampler.plan(sigmas).get('noise_scale', np.zeros(1)) > 0
    draw = lambda i: golden.last(inputs['noise'][adds[:i].sum()])
    got = sample(sampler, step, jnp.asarray(golden.last(inputs['x'])), sigmas, noise=draw)
    golden.assert_close(got, golden.last(want[case]))
    assert len(calls) == config['calls'][case]


def toy(sampler):
    """A step with everything that varies as an argument, and a count of its compilations."""
    traces = []
    denoiser = Denoiser(scaling=VScalingWithEDMcNoise())

    @jax.jit
    def step(cond, uncond, scales, carry, scalars, noise):
        traces.append(1)
        single = lambda x, sigma, cond: denoiser(network, x, sigma, cond)
        guided = lambda x, sigma: guide(single, x, sigma, cond, uncond, scales)
        return sampler.step(carry, guided, scalars, noise)

    return step, traces


CASES = golden.config('samplers')['samplers']
COND = {'vector': jnp.linspace(-1, 1, 4).reshape(2, 2)}
UNCOND = {'vector': jnp.zeros((2, 2))}


@pytest.mark.parametrize('case', CASES)
def test_a_step_is_compiled_once(case):
    sampler = named_sampler(case)
    step, traces = toy(sampler)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
    results = []
    for n, scale in itertools.product([5, 8, 1], [1.5, 4.0]):
        scales = np.array([scale], np.float32)
        sigmas = EDMDiscretization().sigmas(n)
        bound = functools.partial(step, COND, UNCOND, scales)
        results.append(sample(sampler, bound, x, sigmas, jax.random.key(n)))
    assert len(traces) == 1
    assert np.isfinite(results).all()
    assert not np.allclose(results[0], results[1])
    assert not np.allclose(results[0], results[2])


@pytest.mark.parametrize('case', CASES)
def test_both_loops_give_the_same_sample(case):
    sampler = named_sampler(case)
    step, _ = toy(sampler)
    bound = functools.partial(step, COND, UNCOND, np.array([1.5], np.float32))
    x, key = jax.random.normal(jax.random.key(0), (2, 3, 3, 1)), jax.random.key(1)
    sigmas = LegacyDDPMDiscretization().sigmas(4)
    done = []
    host = sample(sampler, bound, x, sigmas, key, progress=lambda i, n: done.append((i, n)))
    scan = jax.jit(lambda x, key: sample_scan(sampler, bound, x, sigmas, key))(x, key)
    golden.assert_close(scan, host)
    calls = 7 if sampler.__class__.__name__.startswith(('Heun', 'DPMPP2S')) else 4
    assert done == [(i + 1, calls) for i in range(calls)]


def gaussian(x, sigma):
    """The exact denoiser of data of deviation 1/2; the ODE then scales x by a known factor."""
    return x * (0.25 / (0.25 + sigma**2))[:, None]


@pytest.mark.parametrize(
    ('node', 'tolerance'),
    [
        ({'name': 'euler_edm'}, 0.1),
        ({'name': 'heun_edm'}, 0.01),
        ({'name': 'euler_ancestral', 'eta': 0.0}, 0.1),
        ({'name': 'dpmpp2s_ancestral', 'eta': 0.0}, 0.01),
        ({'name': 'dpmpp2m'}, 0.01),
        ({'name': 'linear_multistep', 'order': 4}, 0.01),
    ],
)
def test_deterministic_samplers_solve_an_ode_with_a_known_answer(node, tolerance):
    sampler = diffusion.make('sampler', node)
    assert not sampler.stochastic
    step = lambda carry, scalars, noise: sampler.step(carry, gaussian, scalars, noise)
    sigmas = EDMDiscretization(sigma_max=20.0).sigmas(40)
    got = sample(sampler, step, jnp.array([[1.0], [-2.0]]), sigmas)
    # x / sqrt(1/4 + sigma^2) is constant along the flow; x starts at sqrt(1 + 20^2) and ends at sigma 0.
    want = np.sqrt(401) / np.sqrt(400.25) * 0.5 * np.array([[1.0], [-2.0]])
    golden.assert_close(got, want, tolerance)


@pytest.mark.parametrize(
    'node',
    [
        {'name': 'euler_edm', 's_churn': 20.0},
        {'name': 'heun_edm', 's_churn': 20.0},
        {'name': 'euler_ancestral'},
        {'name': 'dpmpp2s_ancestral'},
    ],
)
def test_stochastic_samplers_give_the_data_its_deviation(node):
    sampler = diffusion.make('sampler', node)
    assert sampler.stochastic
    step = lambda carry, scalars, noise: sampler.step(carry, gaussian, scalars, noise)
    x = jax.random.normal(jax.random.key(0), (4000, 1))
    run = jax.jit(lambda x, key: sample_scan(sampler, step, x, sigmas, key))
    sigmas = EDMDiscretization(sigma_max=20.0).sigmas(60)
    assert abs(run(x, jax.random.key(1)).std() - 0.5) < 0.05
    assert not np.allclose(run(x, jax.random.key(1)), run(x, jax.random.key(2)))


@pytest.mark.parametrize('case', CASES)
def test_plans_are_finite_and_stop_where_the_sigmas_stop(case):
    sampler = named_sampler(case)
    for sigmas in (EDMDiscretization(sigma_max=700.0).sigmas(7), np.array([9.0, 3.0, 1.0])):
        plan = sampler.plan(sigmas)
        assert len({len(values) for values in plan.values()}) == 1
        assert all(np.isfinite(values).all() for values in plan.values())
        assert (plan['sigma'] > 0).all()
    two_stage = case.startswith(('heun', 'dpmpp2s'))
    assert len(plan['sigma']) == (4 if two_stage else 2)  # no zero at the end: no call to save


def test_multistep_weights_by_hand():
    # From 2 to 1 with slopes at 2 and 3: the line through them integrates to -3/2 and +1/2.
    plan = SAMPLERS['linear_multistep'](order=2).plan(np.array([3.0, 2.0, 1.0]))
    np.testing.assert_allclose(plan['weights'], [[-1, 0], [-1.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize('sigmas', [[1.0], [1.0, 2.0], [1.0, 0.0, 0.0], [1.0, -1.0]])
def test_bad_sigmas_are_named(sigmas):
    with pytest.raises(UserError, match=r'sigmas are .*descending'):
        SAMPLERS['euler_edm']().plan(np.array(sigmas))


@pytest.mark.parametrize('loop', [sample, sample_scan])
def test_noise_needs_a_key(loop):
    with pytest.raises(UserError, match=r'EulerAncestralSampler.*key'):
        loop(SAMPLERS['euler_ancestral'](), None, jnp.zeros((1, 1)), np.array([1.0, 0.0]))
