"""Adam with moments in fewer bits: bfloat16, or 8 bits with a scale per block.

A moment has the shape of its parameter and is split over devices as that is. All arithmetic is in float32;
what is stored is rounded by chance, up as often as its remainder says: with b2 = 0.999 a second moment
changes by less than half of bfloat16's last bit in a step, and by rounding to the nearest would never change.
The chance is a function of the optimizer's step, so that a run that was taken up goes on bit for bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
# Numbers that share a scale, at most. Dettmers et al. 2022 (arXiv:2110.02861) take 2048.
BLOCK = 256
# Smaller parameters keep float32: there is nothing to be saved.
MIN_SIZE = 4096
# Values lie as powers of the stored number: from the block's largest down to 4e-9 of it, at a step of 3% for
# the largest. The paper's table of 256 values does the same; a power needs no look-up.
POWER = 4


class State(NamedTuple):
    """What Adam knows. Of a moment in float32 or bfloat16 the scales are nothing, ()."""

    count: jax.Array
    mu: PyTree
    nu: PyTree
    mu_scale: PyTree
    nu_scale: PyTree


def scale_by_adam(*, b1: float, b2: float, eps: float, bits: int) -> optax.GradientTransformation:
    """optax.scale_by_adam with moments of `bits` (8 or 16) each."""
    held = {8: _to_bytes, 16: _to_bfloat16}[bits]

    def store(like: jax.Array):
        small = like.size < MIN_SIZE or (bits == 8 and block_axis(like.shape) is None)
        return _as_is if small else held

    def init(params):
        zeros = lambda part, signed: jax.tree.map(
            lambda p: store(p)(jnp.zeros(p.shape), None, signed)[part], params
        )
        moments = zeros(0, True), zeros(0, False), zeros(1, True), zeros(1, False)
        return State(jnp.zeros((), jnp.int32), *moments)

    def update(gradients, state, params=None):
        count = optax.safe_increment(state.count)
        key = jax.random.fold_in(jax.random.key(0), count)
        leaves, tree = jax.tree.flatten(gradients)
        parts = [tree.flatten_up_to(part) for part in state[1:]]
        found = []
        for index, (g, mu, nu, mu_scale, nu_scale) in enumerate(zip(leaves, *parts, strict=True)):
            g = g.astype(jnp.float32)
            mu = b1 * _load(mu, mu_scale) + (1 - b1) * g
            nu = b2 * _load(nu, nu_scale) + (1 - b2) * jnp.square(g)
            first, second = jax.random.split(jax.random.fold_in(key, index))
            step = (mu / (1 - b1**count)) / (jnp.sqrt(nu / (1 - b2**count)) + eps)
            (mu, mu_scale), (nu, nu_scale) = store(g)(mu, first, True), store(g)(nu, second, False)
            found.append((step, mu, nu, mu_scale, nu_scale))
        steps, *parts = (tree.unflatten(part) for part in zip(*found, strict=True))
        return steps, State(count, *parts)

    return optax.GradientTransformation(init, update)


def block_axis(shape: tuple[int, ...]) -> int | None:
    """The axis along which a parameter's numbers share scales; None if there is none worth it.

    The largest but one: the largest is what is split over devices, so that blocks lie on one of them.
    """
    if len(shape) < 2:
        return None
    axis = sorted(range(len(shape)), key=lambda i: -shape[i])[1]
    return axis if _block(shape[axis]) >= 16 else None


def _block(length: int) -> int:
    return max(n for n in range(1, min(length, BLOCK) + 1) if length % n == 0)


def _as_is(x, key, signed):
    return x, jnp.zeros((), jnp.float32)


def _to_bfloat16(x, key, signed):
    if key is None:
        return x.astype(jnp.bfloat16), jnp.zeros((), jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return rounded.astype(jnp.bfloat16), jnp.zeros((), jnp.float32)


def _to_bytes(x, key, signed):
    axis = block_axis(x.shape)
    length = x.shape[axis]
    blocks = x.reshape(*x.shape[:axis], -1, _block(length), *x.shape[axis + 1 :])
    scale = jnp.max(jnp.abs(blocks), axis + 1)
    inner = jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), axis + 1)
    limit, kind = (127, jnp.int8) if signed else (255, jnp.uint8)
    size = jnp.clip(jnp.abs(blocks) / inner, 0.0, 1.0)
    # The neighbours on the scale of powers, and the chance of the upper so that the mean is the value.
    low = jnp.floor(limit * size ** (1 / POWER))
    below, above = (low / limit) ** POWER, ((low + 1) / limit) ** POWER
    chance = jnp.clip((size - below) / (above - below), 0.0, 1.0)
    draw = 0.5 if key is None else jax.random.uniform(key, x.shape).reshape(blocks.shape)
    number = jnp.minimum(low + (draw < chance), limit)
    if signed:
        number = jnp.sign(blocks) * number
    else:
        # A second moment of 0 would be divided by.
        number = jnp.where(blocks > 0, jnp.maximum(number, 1), 0)
    return number.astype(kind).reshape(x.shape), scale


def _load(x, scale):
    if x.dtype not in (jnp.int8, jnp.uint8):
        return x.astype(jnp.float32)
    axis = block_axis(x.shape)
    limit = 127 if x.dtype == jnp.int8 else 255
    blocks = x.reshape(*x.shape[:axis], scale.shape[axis], -1, *x.shape[axis + 1 :])
    part = blocks.astype(jnp.float32) / limit
    value = jnp.sign(part) * jnp.abs(part) ** POWER * jnp.expand_dims(scale, axis + 1)
    return value.reshape(x.shape)
