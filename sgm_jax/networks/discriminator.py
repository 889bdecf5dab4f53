"""The patch discriminator that adversarial first stages are trained against."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks import placement
from sgm_jax.networks.layers import Keys, Statistic

_INIT = nnx.initializers.normal(0.02)


class BatchNorm(nnx.Module):
    """Normalises (n, h, w, c) over all but the channels, in float32. Follows torch.nn.BatchNorm2d.

    In training it uses the batch's statistics and moves the running ones by a tenth; otherwise it uses the
    running ones. The batch is the global one, however it is spread over devices.
    """

    def __init__(self, channels: int, *, rngs: Keys, momentum: float = 0.1, epsilon: float = 1e-5):
        # sgm's weights_init.
        self.scale = nnx.Param(1.0 + _INIT(rngs.params(), (channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.running_mean = Statistic(jnp.zeros((channels,), jnp.float32))
        self.running_var = Statistic(jnp.ones((channels,), jnp.float32))
        self.num_batches_tracked = Statistic(jnp.zeros((), jnp.int32))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.astype(jnp.float32)
        if train:
            mean = x.mean((0, 1, 2))
            variance = jnp.square(x - mean).mean((0, 1, 2))
            count = x.size // x.shape[-1]
            self._track(self.running_mean, mean)
            # PyTorch normalises by the biased variance and keeps the unbiased one.
            self._track(self.running_var, variance * (count / max(count - 1, 1)))
            self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1
        else:
            mean, variance = self.running_mean[...], self.running_var[...]
        factor = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]
        return (x - mean) * factor + self.bias[...]

    def _track(self, running: Statistic, value: jax.Array) -> None:
        value = jax.lax.stop_gradient(value)
        running[...] = (1 - self.momentum) * running[...] + self.momentum * value


class ActNorm(nnx.Module):
    """scale (x + loc) per channel, where the first training batch sets both so that it comes out normal.

    Follows sgm's ActNorm. Source: Kingma and Dhariwal 2018 (arXiv:1807.03039), section 3.1.
    """

    def __init__(self, channels: int, *, rngs: Keys):
        self.loc = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.factor = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.initialized = Statistic(jnp.zeros((), jnp.uint8))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.astype(jnp.float32)
        loc, factor = self.loc[...], self.factor[...]
        if train:
            mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2), ddof=1)
            first = self.initialized[...] == 0
            move = lambda old, new: jax.lax.stop_gradient(jnp.where(first, new - old, 0.0))
            # Moved, not replaced: the gradient of the first step is that of the new values.
            loc = loc + move(loc, -mean)
            factor = factor + move(factor, 1 / (deviation + 1e-6))
            self.loc[...], self.factor[...] = map(jax.lax.stop_gradient, (loc, factor))
            self.initialized[...] = jnp.ones_like(self.initialized[...])
        return factor * (x + loc)


class LeakyReLU(nnx.Module):
    """With the slope that discriminators are given, 0.2."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.leaky_relu(x, 0.2)


class NLayerDiscriminator(nnx.Module):
    """Says of each patch whether it is real. Follows sgm's NLayerDiscriminator.

    Source: Isola et al. 2017 (pix2pix, arXiv:1611.07004), section 3.2.2, as in CycleGAN.

    Calls: x (n, h, w, input_nc), or clips (b, t, h, w, input_nc) frame by frame -> logits (n, h', w', 1),
    h' being about h / 2 ** n_layers. With `train`, norms use the batch's statistics, and running ones change.
    """

    def __init__(
        self,
        *,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        use_actnorm: bool = False,
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        norm = ActNorm if use_actnorm else BatchNorm
        # A BatchNorm has a bias of its own.
        options = dict(bias=use_actnorm, dtype=dtype, rngs=rngs)
        layers = [_conv(input_nc, ndf, 2, dtype=dtype, rngs=rngs), LeakyReLU()]
        width = ndf
        for level in range(1, n_layers + 1):
            last, width = width, ndf * min(2**level, 8)
            stride = 2 if level < n_layers else 1
            layers += [
                _conv(last, width, stride, **options),
                norm(width, rngs=rngs),
                LeakyReLU(),
            ]
        self.main = nnx.List([*layers, _conv(width, 1, 1, dtype=dtype, rngs=rngs)])
        self.n_layers = n_layers

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = x.reshape(-1, *x.shape[-3:])
        smallest = 3 * 2**self.n_layers
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f'the discriminator of {self.n_layers} layers needs pictures of {smallest}x{smallest} or '
                f'more, got {x.shape[1]}x{x.shape[2]}; use fewer layers'
            )
        x = placement.feature_map(x)
        for layer in self.main:
            x = layer(x, train=train) if isinstance(layer, (BatchNorm, ActNorm)) else layer(x)
            # Else a kernel that is split by what it gives would have its feature map split so, too.
            x = placement.feature_map(x)
        return x.astype(jnp.float32)


def receptive_field(n_layers: int) -> int:
    """The side, in pixels, of the patch that one logit of a discriminator looks at."""
    side = 1 + 3 + 3  # the last two convolutions, of stride 1
    for _ in range(n_layers):
        side = 2 * side + 2
    return side


def _conv(inputs, outputs, stride, *, bias=True, dtype, rngs):
    return nnx.Conv(
        inputs,
        outputs,
        (4, 4),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=bias,
        kernel_init=_INIT,
        bias_init=lambda key, shape, dtype: _torch_bias(key, shape, dtype, 16 * inputs),
        dtype=dtype,
        rngs=rngs,
    )


def _torch_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
    """PyTorch's initial bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in)). sgm redraws weights only."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
