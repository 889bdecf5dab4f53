"""The layers that the networks are made of: Flax's, with PyTorch's initial values, and two of ours.

Parameters are float32; `dtype` is what the layer computes in. Normalisation is always computed in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.networks import convolution, derivatives, placement

Dtype = Any


# torch.nn.Linear and Conv2d draw weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

_BLOCK = 256  # keys folded at once
_GROUP = 2**24  # numbers drawn at once, at most, but for a kernel that has more


class Keys:
    """The keys that a network's initial values are drawn with, given out one after the other.

    Stands in for nnx.Rngs, whose counters are traced: under jit they cost time quadratic in the number
    of parameters, and building a large network took minutes.

    Attributes:
      shapes_only: the module is built for its shapes, so matrices need not be drawn: tracing that is a third
        of building SDXL.
      together: kernels are zeros until `drawn` fills them in. A draw takes a fifth of a second to compile on
        a CPU, and those of one shape are one draw. The numbers are the same.
    """

    def __init__(
        self, key: jax.Array | int = 0, *, shapes_only: bool = False, together: bool = False
    ):
        self._key = jax.random.key(key) if isinstance(key, int) else key
        self._count = 0
        self._block = None
        self._waiting = []
        self.shapes_only, self.together = shapes_only, together

    def params(self) -> jax.Array:
        """The next key: the first, with the parameter's number folded in."""
        if self.shapes_only:
            return self._key
        # Each fold is a loop, which takes time to compile.
        place = self._count % _BLOCK
        if place == 0:
            numbers = jnp.arange(self._count + 1, self._count + 1 + _BLOCK)
            self._block = jax.vmap(jax.random.fold_in, (None, 0))(self._key, numbers)
        self._count += 1
        return self._block[place]

    def kernel_init(self, key: jax.Array, shape: Sequence[int], dtype: Dtype) -> jax.Array:
        """An initializer: `torch_uniform`, now or later."""
        if not self.together:
            return torch_uniform(key, shape, dtype)
        kernel = jnp.zeros(shape, dtype)
        self._waiting.append((kernel, key))
        return kernel

    def drawn(self, tree: Any) -> Any:
        """The tree of a module that these keys built, with its kernels drawn.

        Raises:
          RuntimeError: a kernel is not there as it was given out.
        """
        groups: dict[tuple, list] = {}
        for kernel, key in self._waiting:
            groups.setdefault((kernel.shape, kernel.dtype), []).append((kernel, key))
        values = {}
        for (shape, dtype), members in groups.items():
            size = max(1, _GROUP // math.prod(shape))
            for begin in range(0, len(members), size):
                part = members[begin : begin + size]
                keys = jnp.stack([key for _, key in part])
                kernels = jax.vmap(lambda key, s=shape, d=dtype: torch_uniform(key, s, d))(keys)
                values |= {id(kernel): kernels[i] for i, (kernel, _) in enumerate(part)}
        filled = jax.tree.map(lambda x: values.pop(id(x), x), tree)
        if values:
            raise RuntimeError(f'{len(values)} kernels were changed before they were drawn')
        return filled


def _kernel_init(zero: bool, rngs: Keys) -> Callable[..., jax.Array]:
    return nnx.initializers.zeros_init() if zero or rngs.shapes_only else rngs.kernel_init


def stack(build: Callable[[Any], nnx.Module], arguments: Sequence[Any], *, rngs: Keys) -> nnx.List:
    """A module for each argument.

    For shapes only, one is built of each kind and copied, which takes a tenth of the time.
    """
    if not rngs.shapes_only:
        return nnx.List([build(argument) for argument in arguments])
    first = {argument: build(argument) for argument in dict.fromkeys(arguments)}
    return nnx.List([nnx.clone(first[argument]) for argument in arguments])


def ready(
    arrays: Sequence[jax.Array | None], *, dtype: Dtype, **_: Any
) -> tuple[jax.Array | None, ...]:
    """Input, kernel and bias as a layer computes with them: in its dtype, the kernel on every device."""
    x, kernel, bias = nnx.nn.dtypes.promote_dtype(tuple(arrays), dtype=dtype)
    return x, placement.whole(kernel), bias


def linear(
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    zero: bool = False,
    dtype: Dtype,
    rngs: Keys,
) -> nnx.Linear:
    """A matrix on the last axis; `zero` starts it at zero, as the last layer of a residual branch."""
    init = _kernel_init(zero, rngs)
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=init,
        dtype=dtype,
        promote_dtype=ready,
        rngs=rngs,
    )


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: Any = None,
    bias: bool = True,
    zero: bool = False,
    dims: int = 2,
    dtype: Dtype,
    rngs: Keys,
) -> nnx.Conv:
    """A convolution on (n, h, w, c), padded by half a kernel unless `padding` says otherwise.

    With `dims` 1 or 3 it works on (n, l, c) or (n, d, h, w, c); a stride leaves the depth d alone.
    """
    half = kernel // 2
    return nnx.Conv(
        inputs,
        outputs,
        (kernel,) * dims,
        strides=(1, stride, stride)[-dims:],
        padding=((half, half),) * dims if padding is None else padding,
        use_bias=bias,
        kernel_init=_kernel_init(zero, rngs),
        dtype=dtype,
        promote_dtype=ready,
        conv_general_dilated=convolution.convolve,
        rngs=rngs,
    )


class Conv3D(nnx.Module):
    """A convolution over time and space on (b, t, h, w, c), padded by half a kernel."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        *,
        zero: bool = False,
        dtype: Dtype,
        rngs: Keys,
    ):
        init = _kernel_init(zero, rngs)
        self.kernel = nnx.Param(init(rngs.params(), (*kernel, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = ready((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        if kernel.shape[1:3] == (1, 1):
            height, width = x.shape[2:4]
            y = convolution.over_time(placement.flatten_pixels(x), kernel[:, 0])
            return placement.unflatten_pixels(y + bias, height, width)
        padding = [(k // 2, k // 2) for k in kernel.shape[:-2]]
        numbers = ('NDHWC', 'DHWIO', 'NDHWC')
        return (
            jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=numbers)
            + bias
        )


class GroupNorm(nnx.Module):
    """Normalises over groups of channels and all inner axes of (n, ..., c), in float32.

    Follows torch.nn.GroupNorm and sgm's GroupNorm32.
    """

    def __init__(self, channels: int, *, groups: int = 32, epsilon: float = 1e-5):
        if channels % groups:
            raise ValueError(f'{channels} channels do not divide into {groups} groups')
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: jax.Array, *, silu: bool = False) -> jax.Array:
        """With `silu`, the SiLU of that: the two together cost less, above all in a gradient."""
        return derivatives.group_norm(
            x, self.scale[...], self.bias[...], self.groups, self.epsilon, silu
        )


class LayerNorm(nnx.Module):
    """Normalises over the last axis of (..., c), in float32. Follows torch.nn.LayerNorm."""

    def __init__(self, channels: int, *, epsilon: float = 1e-5, dtype: Dtype):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = derivatives.layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return normed.astype(self.dtype)


def layer_norm(channels: int, *, dtype: Dtype, rngs: Keys) -> LayerNorm:
    """A LayerNorm, in the words of the other layers: its initial values need no keys."""
    return LayerNorm(channels, dtype=dtype)


class Buffer(nnx.Variable):
    """A constant of a network: loaded and saved with its weights, never trained."""


class Statistic(nnx.Variable):
    """What a network keeps a running figure of while it trains: neither trained nor constant."""


class MLP(nnx.Module):
    """Linear, SiLU, linear: how sgm embeds noise levels, vectors and frame numbers."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, dtype: Dtype, rngs: Keys):
        self.first = linear(inputs, hidden, dtype=dtype, rngs=rngs)
        self.second = linear(hidden, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.silu(self.first(x)))


def timestep_embedding(timesteps: jax.Array, dim: int, max_period: float = 10000.0) -> jax.Array:
    """Sinusoids of (n,) numbers, which may be fractional: (n, dim), cosines first.

    Follows sgm.modules.diffusionmodules.util.timestep_embedding.
    """
    half = dim // 2
    # A constant, from float64: an exp that is off by its last bit turns the angle of step 999 by 6e-5.
    exponents = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32)
    frequencies = np.exp((exponents / np.float32(half)).astype(np.float64)).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of the entries and scales up the rest; without a key it does nothing."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def fold(key: jax.Array | None, index: int) -> jax.Array | None:
    """The dropout key of the index-th part; None stays None."""
    return None if key is None else jax.random.fold_in(key, index)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """(n, h, w, c) to (n, 2h, 2w, c); a depth before h stays, and (n, l, c) becomes (n, 2l, c)."""
    if x.ndim != 4:
        x = jnp.repeat(x, 2, axis=-2)
        return x if x.ndim == 3 else jnp.repeat(x, 2, axis=-3)
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


def downsample_mean(x: jax.Array) -> jax.Array:
    """(n, h, w, c) to (n, h/2, w/2, c); a depth before h stays, and (n, l, c) becomes (n, l/2, c)."""
    if x.ndim != 4:
        x = x.reshape(*x.shape[:-2], x.shape[-2] // 2, 2, x.shape[-1]).mean(-2)
        if x.ndim == 3:
            return x
        return x.reshape(*x.shape[:-3], x.shape[-3] // 2, 2, *x.shape[-2:]).mean(-3)
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
