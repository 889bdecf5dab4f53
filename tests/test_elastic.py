"""Runs that are taken up by more or fewer devices and processes: the same examples, and the same numbers."""

import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import processes
import pytest
import smallest
from checkpointed import state_of

BATCH, STEPS = 8, 6
TRAIN = dict(batch_size=BATCH, steps=STEPS, log_every=1, checkpoint_every=2, keep=9)
# Every example of the one epoch that is trained comes once. What each step was given is written down, small
# arrays are split as large ones are, and the optimizer is smooth in the gradients.
MORE = """
    import functools, json, os, jax
    from sgm_jax.data.synthetic import SyntheticVideo
    from sgm_jax.engines.autoencoding import AutoencodingEngine
    from sgm_jax.parallel import mesh as meshes
    record = SyntheticVideo.record
    # A config is asked for more than once.
    plain = AutoencodingEngine.plain = getattr(AutoencodingEngine, 'plain', AutoencodingEngine.prepare)
    def numbered(self, index, rng=None):
        return dict(record(self, index, rng), index=index)
    def noted(self, batch):
        batch = dict(batch)
        found = batch.pop('index').tolist()
        with open(os.path.join({folder!r}, f'given_{{jax.process_index()}}'), 'a') as file:
            print(json.dumps(found), file=file)
        return plain(self, batch)
    SyntheticVideo.record, AutoencodingEngine.prepare = numbered, noted
    meshes.by_shape = functools.partial(meshes.by_shape, min_size=64)
    config.data.length = {length}
    config.optimizer.eps = 0.1
"""


@dataclasses.dataclass(frozen=True)
class Leg:
    """A start of a run: in how many processes of how many devices, on which mesh, and until which step."""

    processes: int
    devices: int
    mesh: dict
    until: int


def lead(folder: pathlib.Path, legs: list[Leg]) -> list[list[int]]:
    """Runs one leg after the other in `folder/run`; the numbers of the examples of each step."""
    given = []
    for number, leg in enumerate(legs):
        own = folder / str(number)
        own.mkdir()
        lines = MORE.format(folder=str(own), length=BATCH * STEPS).splitlines()
        config = processes.write_config(
            own / 'config.py',
            model='smallest',
            mesh=leg.mesh,
            more='\n'.join(line for line in lines if line).lstrip(),
            **{**TRAIN, 'steps': leg.until},
        )
        words = [f'--config={config}', f'--workdir={folder / "run"}']
        sizes = dict(count=leg.processes, devices=leg.devices)
        with processes.started(words, own, **sizes) as these:
            assert these.wait() == [0] * leg.processes, ''.join(
                map(these.said, range(leg.processes))
            )
            devices = leg.processes * leg.devices
            assert f'; {devices} devices (cpu) in {leg.processes} process' in these.said(0)
        parts = [
            list(map(json.loads, (own / f'given_{index}').read_text().splitlines()))
            for index in range(leg.processes)
        ]
        # A process has the rows after those of the one before it.
        given += [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]
    return given


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> tuple[list, pathlib.Path]:
    """All steps on one device."""
    folder = tmp_path_factory.mktemp('undisturbed')
    given = lead(folder, [Leg(1, 1, {'data': 1}, STEPS)])
    assert sorted(itertools.chain(*given)) == list(range(BATCH * STEPS))
    return given, folder / 'run'


@pytest.mark.slow
@pytest.mark.parametrize(
    'legs',
    [
        [
            Leg(1, 8, {'data': 2, 'fsdp': 4}, 2),
            Leg(1, 2, {'fsdp': 2}, 4),
            Leg(1, 1, {'data': 1}, STEPS),
        ],
        [Leg(2, 4, {'data': 2, 'fsdp': 4}, 3), Leg(1, 1, {'data': 1}, STEPS)],
        [Leg(1, 1, {'data': 1}, 3), Leg(2, 4, {'fsdp': 8}, STEPS)],
    ],
    ids=['8-2-1 devices', '2-1 processes', '1-2 processes'],
)
def test_a_run_goes_on_with_other_devices(legs, undisturbed, tmp_path):
    given, workdir = undisturbed
    assert lead(tmp_path, legs) == given
    config = smallest.config(**TRAIN)
    config.optimizer.eps = 0.1
    (expected, position), (found, reached) = (
        state_of(config, place, STEPS) for place in (workdir, tmp_path / 'run')
    )
    assert reached == position
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected.params))
    for tree, other in ((expected.params, found.params), (expected.ema_params, found.ema_params)):
        close = lambda x, y: np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * largest)
        jax.tree.map(close, tree, other)
