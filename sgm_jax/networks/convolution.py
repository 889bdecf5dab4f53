"""Convolutions in the order that a TPU wants them; elsewhere they are XLA's own.

A TPU works on tiles of eight rows by 128 channels, and XLA takes a convolution's examples for the rows. Two
pictures, or the one clip of a convolution over time, leave most of a tile empty: a convolution over 14 frames
of 72x128 pixels and 320 channels is estimated at 10.8 ms on a v5e, where the matrix products take 0.4. Pixels
fill the tiles. So time is convolved with the pixels as examples (0.6 ms), and pictures are convolved down
their columns with the columns as examples, once for each column of the kernel: 1.9 ms for 14 such frames
instead of 3.1, and one of 32x32 pixels and 1280 channels compiles in 2 s instead of 28.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.networks import placement
from sgm_jax.platforms import platform

_TILE = 8  # rows
_FEW = 64  # channels, or more: fewer are laid out as rows, not as columns of a tile
_THIN = 256  # channels, or fewer: three columns of them fill a matrix unit better than one


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """As jax.lax.conv_general_dilated, for nnx.Conv: x (n, h, w, c) or of other dimensions."""
    if platform() == 'tpu' and set(strides) == {1}:
        sizes, edges = kernel.shape[:-2], set(np.ravel(padding))
        if set(sizes) == {1} and edges == {0}:
            return jnp.einsum('...c,cd->...d', x, kernel.reshape(kernel.shape[-2:]))
        if sizes == (3, 3) and edges == {1} and _fills_few_rows(x, kernel):
            return _by_columns(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _fills_few_rows(x: jax.Array, kernel: jax.Array) -> bool:
    if placement.pixels_are_split() or kernel.shape[-1] < _FEW:
        return False
    return placement.examples_per_device(len(x)) % _TILE > 0


def over_time(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Frames (n, t, pixels, c) convolved over t with a kernel (k, 1, c, d), padded by half of it."""
    if platform() == 'tpu':
        return _over_time(x, kernel)
    return _plain(x, kernel)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own, padded by half of the kernel."""
    edges = [(size // 2, size // 2) for size in kernel.shape[:2]]
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), edges, dimension_numbers=numbers)


def _down(x: jax.Array, kernel: jax.Array, turned: bool = False, **options: Any) -> jax.Array:
    """(n, h, w, c) convolved over h with a kernel (k, c, d), padded by half of it.

    Turned, it is the gradient to that convolution's input, (n, h, w, d) to (n, h, w, c).
    """
    half = kernel.shape[0] // 2
    kernel = jnp.flip(kernel[None], 1) if turned else kernel[None]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((0, 0), (half, half)),
        dimension_numbers=('HWNC', 'HWOI' if turned else 'HWIO', 'HWNC'),
        **options,
    )


def _down_gradient(x: jax.Array, g: jax.Array, size: int) -> jax.Array:
    """To the kernel of `_down`, in float32."""
    half = size // 2
    # What is convolved gives its channels as examples, and n is summed over, as h is.
    padding = ((0, 0), (half, half))
    found = jax.lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        padding,
        dimension_numbers=('HWCN', 'HWIO', 'HWNC'),
        preferred_element_type=jnp.float32,
    )
    return found[0]


@jax.custom_vjp
def _over_time(x, kernel):
    return placement.by_example(_down, x, kernel[:, 0], pixels=2)


def _over_time_forward(x, kernel):
    return _over_time(x, kernel), (x, kernel)


def _over_time_gradient(kept, g):
    x, kernel = kept
    back = functools.partial(_down, turned=True)
    dx = placement.by_example(back, g, kernel[:, 0], pixels=2)
    one = lambda x, g: _down_gradient(x, g, len(kernel)).astype(kernel.dtype)
    return dx, placement.by_example(one, x, g, pixels=2, summed=True)[:, None]


_over_time.defvjp(_over_time_forward, _over_time_gradient)


@jax.custom_vjp
def _by_columns(x, kernel):
    return placement.by_example(_columns, x, kernel)


def _by_columns_forward(x, kernel):
    return _by_columns(x, kernel), (x, kernel)


def _by_columns_gradient(kept, g):
    x, kernel = kept
    dx = placement.by_example(functools.partial(_columns, turned=True), g, kernel)
    one = lambda x, g: _columns_gradient(x, g).astype(kernel.dtype)
    return dx, placement.by_example(one, x, g, summed=True)


_by_columns.defvjp(_by_columns_forward, _by_columns_gradient)


def _shifted(x: jax.Array, by: int) -> jax.Array:
    """What (n, h, w, c) has `by` columns further right, and zero outside."""
    edges = ((0, 0), (0, 0), (max(-by, 0), max(by, 0)), (0, 0))
    begin = max(by, 0)
    return jnp.pad(x, edges)[:, :, begin : begin + x.shape[2]]


def _is_small(x: jax.Array) -> bool:
    """Whether reading the kernel is most of the work."""
    n, h, w, c = x.shape
    return n * h * w <= 2 * c


def _columns(x, kernel, turned=False):
    columns = [kernel[:, column] for column in ((2, 1, 0) if turned else (0, 1, 2))]
    if x.shape[-1] <= _THIN or _is_small(x):
        # The three side by side, as channels.
        wide = jnp.concatenate(columns, -1) if turned else kernel.reshape(3, -1, kernel.shape[-1])
        return _down(jnp.concatenate([_shifted(x, by) for by in (-1, 0, 1)], -1), wide, turned)
    left, middle, right = (
        _down(x, column, turned, preferred_element_type=jnp.float32) for column in columns
    )
    return (_shifted(left, -1) + middle + _shifted(right, 1)).astype(x.dtype)


def _columns_gradient(x, g):
    if _is_small(x) or x.shape[-1] < _FEW:
        kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
        return jax.linear_transpose(functools.partial(_plain, x), kernel)(g)[0]
    columns = [_down_gradient(x, _shifted(g, by), 3) for by in (1, 0, -1)]
    return jnp.stack(columns, 1)
