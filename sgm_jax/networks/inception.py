"""Inception-v3, whose last features the Fréchet inception distance is measured in.

Szegedy et al. 2015 (arXiv:1512.00567), in the variant of the published FID weights, which came from
TensorFlow: averages leave out what is padded, and the last block takes a maximum in place of an average.
Parts have torchvision's names; weights are read by interop/inception_files.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks.layers import Buffer, Keys, torch_uniform

SIDE, FEATURES = 299, 2048


class BatchNorm(nnx.Module):
    """By stored statistics, (n, h, w, c)."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.running_mean = Buffer(jnp.zeros((channels,), jnp.float32))
        self.running_var = Buffer(jnp.ones((channels,), jnp.float32))

    def __call__(self, x):
        factor = self.scale[...] * jax.lax.rsqrt(self.running_var[...] + 1e-3)
        return (x - self.running_mean[...]) * factor + self.bias[...]


class Conv(nnx.Module):
    """Convolution, norm, ReLU; `same` keeps height and width."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        same: bool = True,
        rngs: Keys,
    ):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.conv = nnx.Conv(
            inputs,
            outputs,
            kernel,
            strides=stride,
            padding=[(k // 2, k // 2) if same else (0, 0) for k in kernel],
            use_bias=False,
            kernel_init=torch_uniform,
            rngs=rngs,
        )
        self.bn = BatchNorm(outputs)

    def __call__(self, x):
        return nnx.relu(self.bn(self.conv(x)))


class Block(nnx.Module):
    """Convolutions in parallel chains, and a pool beside them; what they give is put together.

    `chains` name the attributes of each; one whose last entry is a pair ends in both of the two.
    """

    chains: Sequence[Sequence] = ()
    pool = 'average'

    def __call__(self, x):
        found = []
        for *names, last in self.chains:
            h = x
            for name in names:
                h = getattr(self, name)(h)
            ends = (last,) if isinstance(last, str) else last
            found += [getattr(self, name)(h) for name in ends]
        if self.pool == 'halving':
            return jnp.concatenate([*found, max_pool(x)], -1)
        pooled = average_pool(x) if self.pool == 'average' else max_pool(x, stride=1, pad=1)
        return jnp.concatenate([*found, self.branch_pool(pooled)], -1)


class A(Block):
    """35x35."""

    chains = (
        ('branch1x1',),
        ('branch5x5_1', 'branch5x5_2'),
        ('branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'),
    )

    def __init__(self, inputs: int, pooled: int, *, rngs: Keys):
        self.branch1x1 = Conv(inputs, 64, rngs=rngs)
        self.branch5x5_1 = Conv(inputs, 48, rngs=rngs)
        self.branch5x5_2 = Conv(48, 64, 5, rngs=rngs)
        self.branch3x3dbl_1 = Conv(inputs, 64, rngs=rngs)
        self.branch3x3dbl_2 = Conv(64, 96, 3, rngs=rngs)
        self.branch3x3dbl_3 = Conv(96, 96, 3, rngs=rngs)
        self.branch_pool = Conv(inputs, pooled, rngs=rngs)


class B(Block):
    """35x35 to 17x17."""

    chains = (('branch3x3',), ('branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'))
    pool = 'halving'

    def __init__(self, inputs: int, *, rngs: Keys):
        self.branch3x3 = Conv(inputs, 384, 3, stride=2, same=False, rngs=rngs)
        self.branch3x3dbl_1 = Conv(inputs, 64, rngs=rngs)
        self.branch3x3dbl_2 = Conv(64, 96, 3, rngs=rngs)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, same=False, rngs=rngs)


class C(Block):
    """17x17, in rows and columns."""

    chains = (
        ('branch1x1',),
        ('branch7x7_1', 'branch7x7_2', 'branch7x7_3'),
        tuple(f'branch7x7dbl_{i}' for i in range(1, 6)),
    )

    def __init__(self, inputs: int, width: int, *, rngs: Keys):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(inputs, 192, rngs=rngs)
        self.branch7x7_1 = Conv(inputs, width, rngs=rngs)
        self.branch7x7_2 = Conv(width, width, row, rngs=rngs)
        self.branch7x7_3 = Conv(width, 192, column, rngs=rngs)
        self.branch7x7dbl_1 = Conv(inputs, width, rngs=rngs)
        self.branch7x7dbl_2 = Conv(width, width, column, rngs=rngs)
        self.branch7x7dbl_3 = Conv(width, width, row, rngs=rngs)
        self.branch7x7dbl_4 = Conv(width, width, column, rngs=rngs)
        self.branch7x7dbl_5 = Conv(width, 192, row, rngs=rngs)
        self.branch_pool = Conv(inputs, 192, rngs=rngs)


class D(Block):
    """17x17 to 8x8."""

    chains = (
        ('branch3x3_1', 'branch3x3_2'),
        tuple(f'branch7x7x3_{i}' for i in range(1, 5)),
    )
    pool = 'halving'

    def __init__(self, inputs: int, *, rngs: Keys):
        self.branch3x3_1 = Conv(inputs, 192, rngs=rngs)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2, same=False, rngs=rngs)
        self.branch7x7x3_1 = Conv(inputs, 192, rngs=rngs)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), rngs=rngs)
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), rngs=rngs)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2, same=False, rngs=rngs)


class E(Block):
    """8x8, whose ends fork."""

    chains = (
        ('branch1x1',),
        ('branch3x3_1', ('branch3x3_2a', 'branch3x3_2b')),
        ('branch3x3dbl_1', 'branch3x3dbl_2', ('branch3x3dbl_3a', 'branch3x3dbl_3b')),
    )

    def __init__(self, inputs: int, *, pool: str = 'average', rngs: Keys):
        self.branch1x1 = Conv(inputs, 320, rngs=rngs)
        self.branch3x3_1 = Conv(inputs, 384, rngs=rngs)
        self.branch3x3_2a = Conv(384, 384, (1, 3), rngs=rngs)
        self.branch3x3_2b = Conv(384, 384, (3, 1), rngs=rngs)
        self.branch3x3dbl_1 = Conv(inputs, 448, rngs=rngs)
        self.branch3x3dbl_2 = Conv(448, 384, 3, rngs=rngs)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), rngs=rngs)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), rngs=rngs)
        self.branch_pool = Conv(inputs, 192, rngs=rngs)
        self.pool = pool


class Inception(nnx.Module):
    """Pictures (n, h, w, 3) in [-1, 1] of any size to features (n, 2048), before the classifier.

    They are resized to 299x299 as pytorch-fid does it: linearly between pixel centres, without antialiasing.
    """

    def __init__(self, *, rngs: Keys):
        self.conv_1a = Conv(3, 32, 3, stride=2, same=False, rngs=rngs)
        self.conv_2a = Conv(32, 32, 3, same=False, rngs=rngs)
        self.conv_2b = Conv(32, 64, 3, rngs=rngs)
        self.conv_3b = Conv(64, 80, rngs=rngs)
        self.conv_4a = Conv(80, 192, 3, same=False, rngs=rngs)
        self.mixed_5b = A(192, 32, rngs=rngs)
        self.mixed_5c = A(256, 64, rngs=rngs)
        self.mixed_5d = A(288, 64, rngs=rngs)
        self.mixed_6a = B(288, rngs=rngs)
        self.mixed_6b = C(768, 128, rngs=rngs)
        self.mixed_6c = C(768, 160, rngs=rngs)
        self.mixed_6d = C(768, 160, rngs=rngs)
        self.mixed_6e = C(768, 192, rngs=rngs)
        self.mixed_7a = D(768, rngs=rngs)
        self.mixed_7b = E(1280, rngs=rngs)
        self.mixed_7c = E(2048, pool='maximum', rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        size = (len(x), SIDE, SIDE, x.shape[-1])
        x = jax.image.resize(x.astype(jnp.float32), size, 'linear', antialias=False)
        x = max_pool(self.conv_2b(self.conv_2a(self.conv_1a(x))))
        x = max_pool(self.conv_4a(self.conv_3b(x)))
        for block in (self.mixed_5b, self.mixed_5c, self.mixed_5d, self.mixed_6a, self.mixed_6b):
            x = block(x)
        for block in (self.mixed_6c, self.mixed_6d, self.mixed_6e, self.mixed_7a, self.mixed_7b):
            x = block(x)
        return self.mixed_7c(x).mean((1, 2))


def max_pool(x: jax.Array, *, stride: int = 2, pad: int = 0) -> jax.Array:
    """The largest of each 3x3."""
    padding = ((pad, pad), (pad, pad))
    return nnx.max_pool(x, (3, 3), strides=(stride, stride), padding=padding)


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of each 3x3 around a pixel, of what lies inside."""
    padding = ((1, 1), (1, 1))
    return nnx.avg_pool(x, (3, 3), padding=padding, count_include_pad=False)
