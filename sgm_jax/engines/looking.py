"""What there is to see and to measure of a diffusion model while it is trained; on the host."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.diffusion.guiders import IdentityGuider
from sgm_jax.engines.structure import PyTree, to_uint8

# A validation's noise levels, and how often it draws others as the training does.
SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
DRAWS = 4


def look(
    engine: Any,
    params: PyTree,
    frozen: PyTree,
    batch: Mapping[str, Any],
    key: jax.Array,
    *,
    unguided: bool,
) -> dict[str, np.ndarray]:
    """The examples, what the first stage makes of them, and samples that are told what they are; uint8.

    With `unguided`, and where there is guidance, samples from the same noise without it too.
    """
    inputs = jnp.asarray(batch['jpg'])
    frames = inputs.reshape(-1, *inputs.shape[-3:])
    cond_key, sample_key = jax.random.split(key)
    told = {k: v for k, v in batch.items() if k != 'jpg'}
    without, zero = None, None
    if engine.task.num_frames is None:
        without, zero = engine.sampling.without(told)
    else:
        aug = jnp.full((len(inputs),), engine.sampling.cond_aug)
        told = engine.task.told(batch, aug, cond_key)
    guided = engine.sampling.guided
    cond = engine.condition(params, frozen, told, without=without, zero=zero, guided=guided)
    draw = functools.partial(
        engine.sample_latents,
        params,
        frozen,
        keys=jax.random.split(sample_key, len(inputs)),
        size=inputs.shape[-3:-1],
    )
    shown = lambda x: to_uint8(x).reshape(inputs.shape)
    decoded = lambda z: shown(_decoded(engine, params, frozen, z))
    pictures = {'inputs': shown(inputs), 'samples': decoded(draw(cond))}
    if unguided and guided:
        plainly = dataclasses.replace(engine.sampling, guider=IdentityGuider())
        pictures['samples_unguided'] = decoded(draw((cond[0], None), sampling=plainly))
    if engine.structure.shape.first_stage is not None:
        latents = engine.encode(params, frozen, frames)
        pictures['reconstructions'] = decoded(latents)
    return pictures


def _decoded(engine: Any, params: PyTree, frozen: PyTree, z: jax.Array) -> jax.Array:
    """Images of latents, a clip at a time: all of them at once may take more than training does."""
    frames, settings = engine.task.num_frames or len(z), engine.sampling
    decode = functools.partial(
        engine.decode,
        params,
        frozen,
        chunk=settings.decode_chunk or None,
        overlap=settings.decode_overlap,
    )
    return jnp.concatenate([decode(z[i : i + frames]) for i in range(0, len(z), frames)])


def losses_of(
    measure: Callable[[jax.Array, jax.Array | None], jax.Array], key: jax.Array
) -> dict[str, float]:
    """The training loss, `loss`, and that at fixed noise levels, `loss_at_sigma/...`; always the same noise.

    `measure` is the mean loss with a key's noise at a sigma, or (None) at those that the training draws.
    """
    drawn = [measure(jax.random.fold_in(key, draw), None) for draw in range(DRAWS)]
    fixed = {f'loss_at_sigma/{sigma:g}': measure(key, jnp.float32(sigma)) for sigma in SIGMAS}
    return {
        'loss': float(np.mean(jax.device_get(drawn))),
        **{name: float(loss) for name, loss in jax.device_get(fixed).items()},
    }
