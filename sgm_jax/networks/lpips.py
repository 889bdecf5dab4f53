"""LPIPS: how far apart two pictures look, by the features of a classification network.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018, version 0.1.
The weights are published and stay as they are; interop/lpips_files.py reads them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.networks.layers import Dtype, Keys, conv

# From [-1, 1] to the statistics of ImageNet, channel by channel.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_EPSILON = 1e-10


class VGG16(nnx.Module):
    """The convolutions of torchvision's VGG16: (n, h, w, 3) to the last ReLU of each of its five stages.

    The first is (n, h, w, 64), and each further one has half the height and width, rounded down.
    Simonyan and Zisserman 2014, configuration D.
    """

    channels = (64, 128, 256, 512, 512)
    smallest = 16
    _depths = (2, 2, 3, 3, 3)

    def __init__(self, *, dtype: Dtype, rngs: Keys):
        inputs = 3
        for stage, names in enumerate(self._names()):
            for name in names:
                outputs = self.channels[stage]
                setattr(self, name, conv(inputs, outputs, dtype=dtype, rngs=rngs))
                inputs = outputs

    def _names(self) -> list[list[str]]:
        return [[f'conv{s}_{i + 1}' for i in range(n)] for s, n in enumerate(self._depths, 1)]

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        stages = []
        for names in self._names():
            x = _halve(x) if stages else x
            for name in names:
                x = nnx.relu(getattr(self, name)(x))
            stages.append(x)
        return stages


class AlexNet(nnx.Module):
    """The convolutions of torchvision's AlexNet: (n, h, w, 3) to the ReLUs after each of the five.

    Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014.
    """

    channels = (64, 192, 384, 256, 256)
    smallest = 31

    def __init__(self, *, dtype: Dtype, rngs: Keys):
        padded = {'padding': ((2, 2), (2, 2)), 'stride': 4}
        self.conv1 = conv(3, 64, 11, **padded, dtype=dtype, rngs=rngs)
        self.conv2 = conv(64, 192, 5, dtype=dtype, rngs=rngs)
        self.conv3 = conv(192, 384, dtype=dtype, rngs=rngs)
        self.conv4 = conv(384, 256, dtype=dtype, rngs=rngs)
        self.conv5 = conv(256, 256, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        first = nnx.relu(self.conv1(x))
        second = nnx.relu(self.conv2(_max_pool(first)))
        third = nnx.relu(self.conv3(_max_pool(second)))
        fourth = nnx.relu(self.conv4(third))
        return [first, second, third, fourth, nnx.relu(self.conv5(fourth))]


BACKBONES = {'vgg16': VGG16, 'alexnet': AlexNet}


class LPIPS(nnx.Module):
    """The distance of pictures: 0 for the same, about 0.7 for two that have nothing in common.

    Follows sgm.modules.autoencoding.lpips.loss.lpips.LPIPS, whose network is VGG16.

    Args:
      net: 'vgg16' or 'alexnet', the network whose features are compared.
      dtype: what the network computes in; the comparison is in float32.

    Calls: pictures a and b, each (n, h, w, 3) in [-1, 1] -> (n,) float32. What is compared
    to `a` more than once, or is differentiated by `b` alone, can keep `features(a)`.

    Raises:
      ValueError: not such pictures, or smaller than the network can see (16 pixels a side for VGG16).
    """

    def __init__(self, *, net: str = 'vgg16', dtype: Dtype = jnp.float32, rngs: Keys):
        if net not in BACKBONES:
            raise ValueError(f'unknown net {net!r}; choose one of: {", ".join(BACKBONES)}')
        self.net = BACKBONES[net](dtype=dtype, rngs=rngs)
        for i, channels in enumerate(self.net.channels):
            linear = conv(channels, 1, 1, bias=False, dtype=jnp.float32, rngs=rngs)
            setattr(self, f'lin{i}', linear)

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        if a.shape != b.shape:
            raise ValueError(f'pictures of one shape are compared, not {a.shape} and {b.shape}')
        return self.distance(self.features(a), self.features(b))

    def features(self, x: jax.Array) -> list[jax.Array]:
        """Pictures (n, h, w, 3) in [-1, 1] to five layers' features, (n, h', w', c) of length 1 each."""
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f'LPIPS compares pictures (n, h, w, 3), not {x.shape}')
        if min(x.shape[1:3]) < self.net.smallest:
            raise ValueError(
                f'{type(self.net).__name__} sees pictures from {self.net.smallest} pixels a side up, '
                f'not {x.shape[1]} x {x.shape[2]}'
            )
        x = (x.astype(jnp.float32) - _SHIFT) / _SCALE
        return [_normalise(layer) for layer in self.net(x)]

    def distance(self, a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
        """The distances (n,) of pictures that are given by their `features`."""
        total = jnp.zeros((), jnp.float32)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            weight = getattr(self, f'lin{i}').kernel[...].reshape(-1)
            total += (jnp.square(x - y) * weight).sum(-1).mean((1, 2))
        return total


def _normalise(x: jax.Array) -> jax.Array:
    """Divides by the length of the last axis, in float32. Where that is 0, so is the gradient.

    The quotient's own gradient there is 1e10 times that of the distance, and the root's has no value:
    pictures of one colour would end a training.
    """
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    empty = square == 0
    length = jnp.sqrt(jnp.where(empty, 1.0, square))
    return jnp.where(empty, 0.0, x / (length + _EPSILON))


def _halve(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 pixels; an odd last row or column is dropped.

    Two maxima, whose gradient is five times as fast on a CPU as that of a pooling. Pixels that tie share
    the gradient, where PyTorch gives it to the first.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = jnp.maximum(x[:, 0:h:2], x[:, 1:h:2])
    return jnp.maximum(x[:, :, 0:w:2], x[:, :, 1:w:2])


def _max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 3 x 3 pixels around every second one that has all its neighbours."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2))
