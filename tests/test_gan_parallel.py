"""Adversarial training on eight devices: the numbers of one."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, json
sys.path[:0] = ['tests', '.']
import gan_model, jax, numpy as np
from gan_case import pictures
from sgm_jax.parallel import compiler
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training.setup import Setup

# Compiled quickly, for little is run.
compiler.OPTIONS['cpu'] = dict(compiler.OPTIONS['cpu'], xla_backend_optimization_level=0,
                               xla_llvm_disable_expensive_passes=True)
config = gan_model.config(batch_size=8)
config.model.loss.disc_start = 1
# Adam's first step has the sign of each gradient, whatever its size: those that are rounded to either side
# of zero would drift apart.
config.optimizer.learning_rate = 1e-6
config.mesh = json.loads(sys.argv[1])
setup = Setup.from_config(config)
state, frozen = gan_model.start(setup)
state = jax.device_put(state, meshes.shardings(setup.wanted))
whole = meshes.replicated(setup.mesh)
frozen, key = jax.device_put((frozen, jax.random.key(0)), whole)
found = []
for step in range(3):
    batch = np.concatenate([pictures(4 * step + part) for part in range(4)])
    batch = meshes.put_batch({'jpg': batch}, setup.mesh)
    turn = setup.engine.turn(step)
    state, logs = setup.step(turn, state, frozen, batch, key)
    found.append({'turn': turn, **{name: float(value) for name, value in logs.items()}})
norm = state.adversary.statistics['main'][3]
found.append({'mean': np.asarray(norm['running_mean']).tolist(),
              'variance': np.asarray(norm['running_var']).tolist(),
              'count': int(norm['num_batches_tracked'])})
print(json.dumps(dict(devices=jax.device_count(), found=found)))
"""


@pytest.mark.slow
def test_eight_devices_play_as_one(tmp_path):
    found = {}
    for count, sizes in ((1, {'data': 1}), (8, {'data': 4, 'fsdp': 2})):
        environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}',
        }
        done = subprocess.run(
            [sys.executable, '-c', PROGRAM, json.dumps(sizes)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result['devices'] == count
        found[count] = result['found']
    *one, one_norm = found[1]
    *eight, eight_norm = found[8]
    assert [step['turn'] for step in one] == ['alone', 'discriminator', 'generator']
    for before, after in zip(one, eight, strict=True):
        assert before.keys() == after.keys()
        for name in set(before) - {'turn'}:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-4, err_msg=name)
    assert one_norm['count'] == eight_norm['count'] == 3
    for name in ('mean', 'variance'):
        np.testing.assert_allclose(eight_norm[name], one_norm[name], rtol=1e-4, atol=1e-6)
