"""What a run says of itself before its first step."""

import logging
import re
import types

import jax
import numpy as np
import pytest
import smallest
from jax.sharding import AbstractMesh

from sgm_jax.parallel import mesh as meshes
from sgm_jax.training import report
from sgm_jax.training.loop import train
from sgm_jax.training.setup import Setup


class Device:
    """A device that is not here."""

    def __init__(self, kind: str):
        self.device_kind = kind


class Mesh:
    """So many of them."""

    def __init__(self, kind: str, count: int):
        self.devices, self.size = np.array([Device(kind)] * count), count


@pytest.mark.parametrize(
    ('turn', 'flops', 'kind', 'said'),
    [
        # 8 x 197 TFLOP/s, 40% of it: Google's page of v5e.
        (
            '',
            8e14,
            'TPU v5 lite',
            'a step: 100 TFLOP per device; 1.27 s at 40% of its 197 TFLOP/s, an assumption',
        ),
        (
            'generator',
            8e9,
            'NVIDIA H100 80GB HBM3',
            'a step (generator): 1 GFLOP per device; 2.53e-06 s at 40% of its 989 TFLOP/s, '
            'an assumption',
        ),
        ('', 8e10, 'cpu', 'a step: 10 GFLOP per device'),
    ],
)
def test_what_a_step_costs(turn, flops, kind, said):
    assert report.cost(turn, flops, Mesh(kind, 8)) == said


@pytest.mark.parametrize(
    ('fsdp', 'way'),
    [
        (256, '--config.mesh.data=4 --config.mesh.fsdp=64 splits all'),
        (7, 'nor does a number that divides 7'),
    ],
)
def test_what_every_device_has_whole_is_said_with_the_flags_that_split_it(fsdp, way):
    mesh = Mesh('TPU v5 lite', fsdp)
    mesh.shape = {'data': 1, 'fsdp': fsdp, 'context': 1}
    shape = jax.ShapeDtypeStruct((3, 3, 960, 320), np.float32)
    params = meshes.abstract({'network': shape}, AbstractMesh((1, fsdp, 1), meshes.AXES))
    state = types.SimpleNamespace(
        params=params, ema_params=params, opt_state={}, adversary=None, adversary_opt_state={}
    )
    assert report.lines(mesh, state, {})[-1] == (
        f'whole on every device: 1 large (10.5 MiB), for fsdp={fsdp} divides none of their axes; {way}'
    )


def test_a_run_says_what_it_holds_and_costs_and_traces_its_step_once(tmp_path, caplog, monkeypatch):
    # A batch that no other test has: nothing is known of its step.
    config = smallest.config(batch_size=7, steps=2)
    engine, traced = Setup.from_config(config).engine, []
    inner = type(engine).gradients
    note = lambda self, *rest: traced.append(rest[0]) or inner(self, *rest)
    monkeypatch.setattr(type(engine), 'gradients', note)
    with caplog.at_level(logging.INFO):
        train(config, tmp_path)
    assert len(traced) == 1
    lines = [record.getMessage() for record in caplog.records]
    begins = lambda word: [line for line in lines if line.startswith(word)]
    assert begins('mesh: data=1, fsdp=1, context=1; 1 devices (cpu) in 1 process')
    assert begins('parameters: decoder (trained) 8171, encoder (trained) 5916, ')
    assert 'optimizer' in begins('per device: ')[0]
    (cost,) = begins('a step')
    assert re.fullmatch(r'a step \(alone\): \d+(\.\d+)? MFLOP per device', cost)
