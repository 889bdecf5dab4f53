"""The discriminator with ActNorm, and its weights, beside PyTorch (benchmarks/torch_actnorm.py)."""

import json

import golden
import numpy as np
import pytest
from flax import nnx
from gan_case import ACTNORM_CASE, parameters, pictures

from sgm_jax.interop import from_sgm, to_sgm

TARGET = 'sgm.modules.autoencoding.lpips.model.model.NLayerDiscriminator'


@pytest.mark.parametrize(('flag', 'name'), [(1, 'trained'), (0, 'fresh')])
def test_beside_pytorch(flag, name):
    wanted = json.loads((golden.FOLDER / 'actnorm.json').read_text())
    state_dict = parameters(wanted['shapes'])
    flags = {k: np.array(flag, np.uint8) for k in state_dict if k.endswith('initialized')}
    state_dict |= flags
    assert len(flags) == ACTNORM_CASE['n_layers']
    network = from_sgm(TARGET, {**ACTNORM_CASE, 'use_actnorm': True}, state_dict)
    returned = to_sgm(network)
    assert returned.keys() == state_dict.keys()
    for key, array in state_dict.items():
        np.testing.assert_array_equal(returned[key], array, err_msg=key)
        assert returned[key].dtype == array.dtype
    graphdef, state = nnx.split(network)

    @golden.quick_jit
    def run(state, x):
        network = nnx.merge(graphdef, state)
        return network(x, train=True), nnx.state(network)

    logits, after = run(state, pictures(3))
    golden.assert_close(np.ravel(logits), np.array(wanted[name]))
    after = to_sgm(nnx.merge(graphdef, after))
    assert after['main.3.initialized'] == 1
    if name == 'fresh':
        golden.assert_close(after['main.3.loc'].ravel(), np.array(wanted['loc']))
        golden.assert_close(after['main.3.scale'].ravel(), np.array(wanted['scale']))
