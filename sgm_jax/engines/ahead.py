"""The programs of sampling and of a first stage, traced from shapes before there are any weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sgm_jax.engines.autoencoding import AutoencodingEngine
from sgm_jax.engines.diffusion import DiffusionEngine
from sgm_jax.engines.structure import PyTree


def trace_sampling(
    engine: DiffusionEngine,
    params: PyTree,
    frozen: PyTree,
    batch: Mapping[str, Any],
    *,
    count: int,
    place: Callable[[PyTree], PyTree],
) -> dict[str, Any]:
    """The programs of `count` samples: a 'step' of the sampler and 'decode', to be lowered and compiled.

    `batch` is of training; `place` gives a tree of shapes its sharding.
    """
    settings, num_frames = engine.sampling, engine.task.num_frames
    size = engine.latent_size((settings.height, settings.width))
    told = {k: v for k, v in batch.items() if k != 'jpg'}
    if num_frames is not None:
        shape = (count, num_frames, settings.height, settings.width, 3)
        clips = {**told, 'jpg': jax.ShapeDtypeStruct(shape, jnp.float32)}
        made = lambda clips: engine.task.told(clips, jnp.ones(count), jax.random.key(0))
        told = jax.eval_shape(made, clips)
    zero = {name: jax.ShapeDtypeStruct((), bool) for name in settings.zero}
    cond = place(jax.eval_shape(engine._condition, params, frozen, told, zero))
    frames = count * (num_frames or 1)
    z = jax.ShapeDtypeStruct((frames, *size, engine.latent_channels), jnp.float32)
    plan = settings.sampler.plan(settings.discretization.sigmas(settings.steps))
    carry = place(jax.eval_shape(settings.sampler.init, z))
    step = engine._step(settings.sampler).trace(
        params,
        frozen,
        cond,
        cond if settings.guided else None,
        place(settings.guider.scales()),
        carry,
        place({name: values[0] for name, values in plan.items()}),
        place(z) if settings.sampler.stochastic else None,
    )
    # Pictures are decoded as the frames of one clip are.
    together, length = (count, num_frames) if num_frames else (1, count)
    window = engine.decoded_at_once(
        settings.decode_chunk or length, settings.decode_overlap, length
    )
    clips = place(jax.ShapeDtypeStruct((together, window, *size, z.shape[-1]), jnp.float32))
    return {'step': step, 'decode': engine._decode.trace(params, frozen, clips)}


def trace_reconstruction(
    engine: AutoencodingEngine,
    params: PyTree,
    frozen: PyTree,
    images: jax.ShapeDtypeStruct,
    *,
    place: Callable[[PyTree], PyTree],
) -> dict[str, Any]:
    """The programs of a first stage, 'encode' and 'decode' of (n, h, w, c), to be lowered and compiled."""
    encode = engine._encode.trace(params, frozen, images)
    latents = place(jax.eval_shape(engine._encode, params, frozen, images))
    return {'encode': encode, 'decode': engine._decode.trace(params, frozen, latents)}
