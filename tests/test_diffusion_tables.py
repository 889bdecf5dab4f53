"""Noise levels, scalings, weightings, the discrete table and guidance scales against the reference."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgm_jax import diffusion
from sgm_jax.config import build
from sgm_jax.diffusion.denoiser import Denoiser, DiscreteDenoiser
from sgm_jax.diffusion.discretization import EDMDiscretization, LegacyDDPMDiscretization
from sgm_jax.diffusion.guiders import GUIDERS, VanillaCFG, guide
from sgm_jax.diffusion.scaling import SCALINGS, EDMScaling, EpsScaling
from sgm_jax.diffusion.sigma_sampling import DiscreteSampling, EDMSampling, ZeroSampling
from sgm_jax.diffusion.weighting import WEIGHTINGS
from sgm_jax.errors import UserError


@pytest.mark.parametrize('n', [1, 2, 10, 25, 50])
@pytest.mark.parametrize(
    ('name', 'discretization'),
    [
        ('edm', EDMDiscretization(sigma_min=0.002, sigma_max=700.0, rho=7.0)),
        ('edm_default', EDMDiscretization()),
        ('legacy_ddpm', LegacyDDPMDiscretization()),
    ],
)
def test_sigmas_are_the_references(name, discretization, n):
    _, want = golden.arrays('discretization')
    got = discretization.sigmas(n)
    assert got.dtype == np.float32
    assert got[-1] == 0
    np.testing.assert_allclose(got, want[f'{name}_{n}'], rtol=2e-5)


def test_the_whole_ddpm_table_is_the_references():
    _, want = golden.arrays('discretization')
    got = LegacyDDPMDiscretization().sigmas(1000, do_append_zero=False, flip=True)
    np.testing.assert_allclose(got, want['legacy_ddpm_1000_flip'], rtol=2e-5)


@pytest.mark.parametrize(
    ('discretization', 'n', 'words'),
    [
        (EDMDiscretization(), 0, 'give 1 or more'),
        (LegacyDDPMDiscretization(), 0, 'give 1 or more'),
        (LegacyDDPMDiscretization(), 1001, 'num_steps is 1001.*give 1 to 1000'),
        (LegacyDDPMDiscretization(num_timesteps=20), 25, 'give 1 to 20'),
    ],
)
def test_impossible_numbers_of_steps_are_named(discretization, n, words):
    with pytest.raises(UserError, match=words):
        discretization.sigmas(n)


@pytest.mark.parametrize('name', SCALINGS)
def test_scalings_are_the_references(name):
    inputs, want = golden.arrays('denoiser_tables')
    got = jnp.stack(jax.jit(SCALINGS[name]())(inputs['sigma']))
    for row, wanted in zip(got, want[f'scaling_{name}']):
        golden.assert_close(row, wanted)


@pytest.mark.parametrize('name', WEIGHTINGS)
def test_weightings_are_the_references(name):
    inputs, want = golden.arrays('denoiser_tables')
    np.testing.assert_allclose(
        WEIGHTINGS[name]()(jnp.asarray(inputs['sigma'])), want[f'weighting_{name}'], rtol=2e-5
    )


def test_the_discrete_table_is_the_references():
    inputs, want = golden.arrays('denoiser_tables')
    denoiser = DiscreteDenoiser(scaling=EpsScaling())
    idx = jax.jit(denoiser.sigma_to_idx)(inputs['sigma'])
    assert idx.dtype == jnp.int32
    np.testing.assert_array_equal(idx, want['sigma_to_idx'])
    np.testing.assert_allclose(denoiser.idx_to_sigma(idx), want['quantized_sigma'], rtol=2e-5)


def test_a_discrete_denoiser_hands_indices_to_the_network():
    denoiser = DiscreteDenoiser(scaling=EpsScaling())
    seen = []

    def network(x, c_noise, cond, *, scale):
        seen.append(c_noise)
        return x * scale

    x = jnp.ones((2, 3, 3, 1))
    denoiser(network, x, denoiser.idx_to_sigma(jnp.array([17, 999])), {}, scale=1.0)
    assert seen[0].dtype == jnp.int32
    assert seen[0].tolist() == [17, 999]
    plain = dataclasses.replace(denoiser, quantize_c_noise=False)
    plain(network, x, jnp.array([14.0, 15.0]), {}, scale=1.0)
    assert seen[1].dtype == jnp.float32
    assert seen[1][1] == denoiser.sigmas[-1]


def test_a_denoiser_is_its_equation_on_small_numbers():
    # sigma = sigma_data = 1: c_skip = 1/2, c_out = c_in = 1/sqrt 2, c_noise = 0; F doubles and adds 3.
    denoiser = Denoiser(scaling=EDMScaling(sigma_data=1.0))
    network = lambda x, c_noise, cond: 2 * x + cond + c_noise[:, None]
    got = denoiser(network, jnp.array([[4.0], [0.0]]), jnp.ones(2), 3.0)
    np.testing.assert_allclose(got[:, 0], [2 + 4 + 3 / 2**0.5, 3 / 2**0.5], rtol=1e-6)


def test_sigma_samplings():
    key = jax.random.key(0)
    log = jnp.log(EDMSampling(p_mean=0.7, p_std=1.6)(key, (4000,)))
    assert abs(log.mean() - 0.7) < 0.1
    assert abs(log.std() - 1.6) < 0.1
    table = LegacyDDPMDiscretization().sigmas(1000)
    drawn = DiscreteSampling()(key, (50, 20))
    assert drawn.shape == (50, 20)
    assert np.isin(drawn, table).all()
    assert (drawn < 1).any()
    assert (drawn > 4).any()
    late = DiscreteSampling(idx_range=(998, 1000))(key, (50,))
    assert set(late.tolist()) == set(table[:2].tolist())
    np.testing.assert_allclose(ZeroSampling()(key, (3,)), 1e-5)


@pytest.mark.parametrize('frames', [4, 14, 21])
@pytest.mark.parametrize('name', ['linear', 'triangle', 'trapezoid', 'spatiotemporal'])
def test_guider_scales_are_the_references(name, frames):
    _, want = golden.arrays('guider_scales')
    more = {'edge_perc': 0.3} if name == 'trapezoid' else {}
    got = GUIDERS[name](max_scale=2.5, num_frames=frames, **more).scales()
    assert got.dtype == np.float32
    golden.assert_close(got, want[f'{name}_{frames}'][0])


def test_triangles_of_several_periods():
    make = lambda fusing: GUIDERS['triangle'](
        max_scale=3.0, num_frames=5, period=(1.0, 0.5), period_fusing=fusing
    )
    # At 0, 1/4, 1/2, 3/4, 1 the waves are 0 1/2 1 1/2 0 and 0 1 0 1 0; scales are 1 + 2 wave.
    np.testing.assert_allclose(make('max').scales(), [1, 3, 3, 3, 1])
    np.testing.assert_allclose(make('mean').scales(), [1, 2.5, 2, 2.5, 1])
    np.testing.assert_allclose(make('multiply').scales(), [1, 2, 1, 2, 1])


def test_views_are_guided_most_opposite_the_first():
    make = GUIDERS['spatiotemporal']
    got = make(max_scale=3.0, num_frames=6, num_views=3).scales().reshape(2, 3)
    # Half from time (0, 1), half from view (0, 1, 0), of the way from 1 to 3.
    np.testing.assert_allclose(got, [[1, 2, 1], [2, 3, 2]])


def test_guidance_on_small_numbers():
    calls = []

    def denoise(x, sigma, cond):
        calls.append((x, sigma, cond))
        return x + cond['vector'][:, 0, None]

    x = jnp.zeros((4, 1))  # two clips of two frames
    cond, uncond = {'vector': jnp.ones((4, 1))}, {'vector': jnp.full((4, 1), -1.0)}
    got = guide(denoise, x, jnp.arange(4.0), cond, uncond, np.array([1.0, 3.0], np.float32))
    # u = -1, c = 1: u + s (c - u) = -1 + 2 s.
    np.testing.assert_allclose(got[:, 0], [1, 5, 1, 5])
    (_, sigma, both) = calls.pop()
    assert sigma.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert both['vector'][:, 0].tolist() == [-1] * 4 + [1] * 4  # unconditional first
    assert not calls
    got = guide(denoise, x, jnp.arange(4.0), cond, None, None)
    np.testing.assert_allclose(got[:, 0], [1, 1, 1, 1])
    assert calls.pop()[0].shape == x.shape


def test_guidance_errors():
    one = {'vector': jnp.ones((3, 1))}
    scales = VanillaCFG(scale=2.0).scales()
    with pytest.raises(UserError, match='uncond has'):
        guide(None, jnp.ones((3, 1)), jnp.ones(3), one, None, scales)
    with pytest.raises(UserError, match='has 2 frames, but the batch has 3'):
        guide(None, jnp.ones((3, 1)), jnp.ones(3), one, one, np.ones(2))


def test_parts_are_built_by_name():
    got = diffusion.make(
        'denoiser',
        {
            'name': 'discrete',
            'scaling': {'name': 'v'},
            'discretization': {'name': 'edm', 'sigma_max': 9.0},
            'num_idx': 10,
        },
    )
    assert got.discretization == EDMDiscretization(sigma_max=9.0)
    assert got.sigmas[-1] == 9
    assert hash(got) == hash(dataclasses.replace(got))
    guider = {'name': 'linear', 'max_scale': 2.5}
    assert diffusion.make('guider', guider, num_frames=14).scales().shape == (14,)
    assert diffusion.make('guider', {'name': 'identity'}, num_frames=14).scales() is None


@pytest.mark.parametrize('family', diffusion.FAMILIES)
def test_an_unknown_name_lists_the_choices(family):
    table = diffusion.FAMILIES[family]
    with pytest.raises(UserError, match=f'{family}.*nope.*{sorted(table)[0]}'):
        build(table, {'name': 'nope'}, where=family)


def test_errors_below_a_node_say_where():
    with pytest.raises(UserError, match=r'denoiser\.scaling: unknown name'):
        diffusion.make('denoiser', {'name': 'continuous', 'scaling': {'name': 'x'}})
    with pytest.raises(UserError, match="unknown key 's_chrun'; did you mean 's_churn'"):
        diffusion.make('sampler', {'name': 'euler_edm', 's_chrun': 1.0})


@pytest.mark.parametrize(
    ('family', 'node'),
    [
        ('discretization', {'name': 'edm', 'sigma_min': 0.0}),
        ('sigma_sampling', {'name': 'discrete', 'idx_range': (0, 1001)}),
        ('guider', {'name': 'linear', 'max_scale': 2.0, 'num_frames': 0}),
        (
            'guider',
            {'name': 'triangle', 'max_scale': 2.0, 'num_frames': 2, 'period_fusing': 'sum'},
        ),
        ('guider', {'name': 'trapezoid', 'max_scale': 2.0, 'num_frames': 2, 'edge_perc': 0.6}),
        ('guider', {'name': 'spatiotemporal', 'max_scale': 2.0, 'num_frames': 5, 'num_views': 2}),
        ('sampler', {'name': 'linear_multistep', 'order': 0}),
    ],
)
def test_values_out_of_range_are_named(family, node):
    with pytest.raises(UserError, match=r'give|choose'):
        diffusion.make(family, node)
