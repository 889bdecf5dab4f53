"""Convolutions as TPUs want them are XLA's own, on one device and on eight; and who gets which."""

import json
import os
import pathlib
import subprocess
import sys

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sgm_jax.interop import from_sgm
from sgm_jax.networks import convolution, layers
from sgm_jax.platforms import target

UNET = 'sgm.modules.diffusionmodules.openaimodel.UNetModel'
VIDEO_UNET = 'sgm.modules.diffusionmodules.video_model.VideoUNet'
ROOT = pathlib.Path(__file__).resolve().parents[1]
# Of the picture, or of the tokens of frames, and the kernel.
CASES = {
    'time': ((8, 5, 16, 6), (3, 1, 6, 4)),
    'more time': ((8, 7, 16, 6), (5, 1, 6, 4)),
    'few channels in': ((8, 6, 5, 4), (3, 3, 4, 70)),
    'thin': ((8, 6, 4, 65), (3, 3, 65, 70)),
    'small': ((8, 5, 3, 260), (3, 3, 260, 66)),
    'wide': ((8, 12, 8, 258), (3, 3, 258, 66)),
}


def function(kernel, platform):
    """A convolution of pixels or of time, for a platform."""
    padding = [(size // 2, size // 2) for size in kernel[:2]]
    numbers = ('NHWC', 'HWIO', 'NHWC')

    def convolve(x, kernel):
        with target(platform):
            if kernel.shape[1] == 1:
                return convolution.over_time(x, kernel)
            return convolution.convolve(x, kernel, (1, 1), padding, dimension_numbers=numbers)

    return convolve


def results(name, platform):
    """The convolution and its two gradients, weighted at random so that none of them vanishes."""
    shapes = CASES[name]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    call = function(shapes[1], platform)
    weights = rng.standard_normal(jax.eval_shape(call, x, kernel).shape)

    def all_three(x, kernel):
        out, back = jax.vjp(call, x, kernel)
        return out, *back(jnp.asarray(weights, jnp.float32))

    return golden.quick_jit(all_three)(x, kernel)


@pytest.mark.parametrize('name', CASES)
def test_a_tpu_gets_the_same(name):
    for got, want in zip(results(name, 'tpu'), results(name, 'cpu'), strict=True):
        golden.assert_close(got, want, 1e-5)


@pytest.fixture
def like_a_tpu(monkeypatch):
    """All that can be convolved as on a TPU is, narrow as the reference's networks are; no kernels."""
    monkeypatch.setattr(convolution, 'platform', lambda: 'tpu')
    monkeypatch.setattr(convolution, '_FEW', 1)
    monkeypatch.setattr(convolution, '_THIN', 32)


def test_the_image_network_is_the_reference_on_a_tpu_too(like_a_tpu):
    inputs, outputs = golden.arrays('unet_sdxl')
    unet = from_sgm(UNET, golden.config('unet_sdxl'), golden.state_dict('unet_sdxl'))
    out = golden.quick_jit(lambda x, t, context, y: unet(x, t, context, y))(
        golden.last(inputs['x']), inputs['timesteps'], inputs['context'], inputs['y']
    )
    golden.assert_close(out, golden.last(outputs['out']))


def test_the_video_network_is_the_reference_on_a_tpu_too(like_a_tpu):
    config = golden.config('video_unet_svd')
    frames = config.pop('num_video_frames', None) or 4
    unet = from_sgm(VIDEO_UNET, config, golden.state_dict('video_unet_svd'))
    inputs, outputs = golden.arrays('video_unet_svd')
    run = golden.quick_jit(lambda x, t, context, y: unet(x, t, context, y, num_frames=frames))
    out = run(golden.last(inputs['x']), inputs['timesteps'], inputs['context'], inputs['y'])
    golden.assert_close(out, golden.last(outputs['video']))


PROGRAM = """
import functools, json, sys
sys.path[:0] = ['tests', '.']
import jax, numpy as np
from test_networks_convolution import CASES, results
from sgm_jax.networks import placement
from sgm_jax.parallel import mesh as meshes

meshes.by_shape = functools.partial(meshes.by_shape, min_size=0)  # Weights are split, small as they are.
apart = {}
for sizes in ({'data': 8}, {'data': 2, 'fsdp': 4}, {'fsdp': 2, 'context': 4}):
    mesh = meshes.make_mesh(sizes)
    for name in CASES:
        alone = results(name, 'tpu')
        with placement.over(mesh, **meshes.roles(mesh)):
            spread = results(name, 'tpu')
        apart[f'{sizes} {name}'] = [float(np.abs(a - b).max() / np.abs(a).max())
                                    for a, b in zip(map(np.asarray, alone), map(np.asarray, spread))]
print(json.dumps({'devices': jax.device_count(), 'apart': apart}))
"""


def test_eight_devices_convolve_as_one():
    flags = '--xla_force_host_platform_device_count=8'
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['devices'] == 8
    assert len(found['apart']) == 3 * len(CASES)
    assert max(max(of) for of in found['apart'].values()) <= 1e-5, found['apart']


def primitives(layer, shape, platform):
    """Shapes of the kernels of the convolutions and products in a layer."""
    with target(platform):
        # A function of its own: JAX remembers what it traced, and the platform is not in its key.
        traced = jax.make_jaxpr(lambda x: layer(x))(jax.ShapeDtypeStruct(shape, jnp.float32))
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ('conv_general_dilated', 'dot_general'):
                found.append((equation.primitive.name, equation.invars[1].aval.shape))
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    walk(traced.jaxpr)
    return found


@pytest.mark.parametrize(
    ('inputs', 'shape', 'want'),
    [
        (320, (2, 32, 32, 320), 3 * [('conv_general_dilated', (1, 3, 320, 128))]),
        (64, (2, 32, 32, 64), [('conv_general_dilated', (1, 3, 192, 128))]),
        (320, (2, 8, 8, 320), [('conv_general_dilated', (1, 3, 960, 128))]),
        # Eight pictures fill the rows of a tile.
        (320, (8, 32, 32, 320), [('conv_general_dilated', (3, 3, 320, 128))]),
    ],
)
def test_who_is_convolved_by_columns(inputs, shape, want):
    layer = layers.conv(inputs, 128, dtype=jnp.float32, rngs=layers.Keys(shapes_only=True))
    assert primitives(layer, shape, 'tpu') == want
    plain = [('conv_general_dilated', (3, 3, inputs, 128))]
    assert primitives(layer, shape, 'cpu') == primitives(layer, shape, 'gpu') == plain


def test_strides_and_single_pixels():
    rngs = layers.Keys(shapes_only=True)
    one = layers.conv(8, 128, 1, dtype=jnp.float32, rngs=rngs)
    assert primitives(one, (2, 4, 4, 8), 'tpu') == [('dot_general', (8, 128))]
    assert primitives(one, (2, 4, 4, 8), 'gpu') == [('conv_general_dilated', (1, 1, 8, 128))]
    halving = layers.conv(128, 128, stride=2, dtype=jnp.float32, rngs=rngs)
    want = [('conv_general_dilated', (3, 3, 128, 128))]
    assert primitives(halving, (2, 4, 4, 128), 'tpu') == want
