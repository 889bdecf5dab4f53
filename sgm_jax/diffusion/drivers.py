"""Loops that drive a sampler's steps: one on the host, one under `lax.scan`. They know no algorithm.

Both take `step(carry, scalars, noise) -> carry`, a function around `sampler.step` that holds the network.
To compile it once for any schedule, strength and prompt, jit it with those as arguments:

    @jax.jit
    def step(params, cond, uncond, scales, carry, scalars, noise):
        network = lambda x, c_noise, cond: nnx.merge(graphdef, params)(x, c_noise, cond['crossattn'])
        single = lambda x, sigma, cond: denoiser(network, x, sigma, cond)
        guided = lambda x, sigma: guide(single, x, sigma, cond, uncond, scales)
        return sampler.step(carry, guided, scalars, noise)

    step = functools.partial(step, params, cond, uncond, guider.scales())
    x = sample(sampler, step, x, discretization.sigmas(25), key)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.diffusion.samplers import Carry, Sampler
from sgm_jax.errors import UserError

Step = Callable[[Carry, Mapping[str, Any], jax.Array | None], Carry]


def sample(
    sampler: Sampler,
    step: Step,
    x: jax.Array,
    sigmas: np.ndarray,
    key: jax.Array | None = None,
    *,
    noise: Callable[[int], jax.Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> jax.Array:
    """A sample, with a loop on the host.

    Args:
      sampler: a sampler.
      step: `sampler.step` with the network inside; usually jitted.
      x: standard normal noise (b, ...); it is scaled by sqrt(1 + sigmas[0]^2) here.
      sigmas: (n + 1,), descending, from a discretization.
      key: for the noise between the steps; not read if the sampler is not stochastic.
      noise: gives the noise of call i instead of the key.
      progress: called with (calls done, calls in all) when each call has finished.

    Raises:
      UserError: bad sigmas, or a stochastic sampler without key and noise.
    """
    noise = noise or functools.partial(_noise_of_call, _checked(sampler, key, noise), like=x)
    plan = sampler.plan(sigmas)
    carry = sampler.init(_scaled(x, sigmas))
    calls = len(plan['sigma'])
    for i in range(calls):
        scalars = {name: values[i] for name, values in plan.items()}
        carry = step(carry, scalars, noise(i) if sampler.stochastic else None)
        if progress:
            jax.block_until_ready(carry)
            progress(i + 1, calls)
    return sampler.result(carry)


def sample_scan(
    sampler: Sampler, step: Step, x: jax.Array, sigmas: np.ndarray, key: jax.Array | None = None
) -> jax.Array:
    """The same sample, with the loop on the device: traceable, for use inside jit.

    Takes the arguments of `sample`. The sigmas become constants of the program that it is traced into.
    """
    key = _checked(sampler, key, None)

    def body(carry, call):
        i, scalars = call
        return step(carry, scalars, _noise_of_call(key, i, x) if sampler.stochastic else None), None

    plan = sampler.plan(sigmas)
    calls = jnp.arange(len(plan['sigma']))
    carry, _ = jax.lax.scan(body, sampler.init(_scaled(x, sigmas)), (calls, plan))
    return sampler.result(carry)


def _scaled(x: jax.Array, sigmas: np.ndarray) -> jax.Array:
    return x * np.sqrt(1 + np.float32(sigmas[0]) ** 2)


@functools.partial(jax.jit, static_argnames=('shape', 'dtype'))
def _normal(key: jax.Array, i: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, i), shape, dtype)


def _noise_of_call(key: jax.Array, i: jax.Array, like: jax.Array) -> jax.Array:
    return _normal(key, i, like.shape, like.dtype)


def _checked(sampler: Sampler, key: jax.Array | None, noise: Any) -> jax.Array | None:
    if sampler.stochastic and key is None and noise is None:
        raise UserError(f'{type(sampler).__name__} adds noise as it goes; give it a key')
    return key
