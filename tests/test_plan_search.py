"""The search for settings: what is tried, when it stops, and what is found; and advice where nothing fits."""

import pytest

from sgm_jax.config import load_config
from sgm_jax.errors import UserError
from sgm_jax.parallel import topologies
from sgm_jax.parallel.topologies import GIB
from sgm_jax.tools import plan_report, plan_search
from sgm_jax.tools.planning import Compiled, Plan, settings

TOPOLOGY = topologies.parse('v5e-16')
STATE = 32 * GIB
# GiB of an example's activations, and seconds of a step of one, by the rule of remat.
ACTIVATIONS = {'none': 9, 'dots': 5, 'transformer': 6, 'layer': 2, 'full': 1.5}
TIME = {'none': 1.0, 'dots': 1.1, 'transformer': 1.02, 'layer': 1.05, 'full': 1.3}


def plan(config, topology) -> Plan:
    """As if compiled: the state split over fsdp, activations by remat and batch, a fixed cost of a step."""
    batch, remat = config.train.batch_size, config.model.network.remat
    # Devices along `context` have a part of the state and of each example.
    split = config.mesh.get('context', 1)
    each = batch / topology.size
    arguments = STATE / config.mesh.fsdp / split
    temporaries = each * ACTIVATIONS[remat] * GIB
    peak = arguments + temporaries
    step = Compiled(needed=peak)
    if peak <= topology.chip.memory:
        cycles = topology.chip.clock * (0.2 + each * TIME[remat])
        step = Compiled(
            arguments=arguments, temporaries=temporaries, peak=peak, flops=1e12, cycles=cycles
        )
    return Plan(
        work='train',
        topology=topology.name,
        devices=topology.size,
        batch_size=batch,
        mesh={'data': config.mesh.data, 'fsdp': config.mesh.fsdp, 'context': split},
        settings=settings(config),
        parts={},
        programs={'step': step},
        runs={'step': 1},
    )


@pytest.fixture
def searched(monkeypatch):
    monkeypatch.setattr(plan_search, 'plan_training', plan)
    plans, said = [], []
    best = plan_search.search(
        load_config('configs/sdxl_base.py'), TOPOLOGY, found=plans.append, show=said.append
    )
    return best, plans, said


def test_the_best_that_fits_is_found(searched):
    best, plans, _ = searched
    fitting = [one for one in plans if plan_report.fits(one)]
    assert plan_report.fits(best)
    assert plan_search.speed(best) == max(map(plan_search.speed, fitting))
    # Four examples a device hide the fixed cost; only the smallest activations leave room for them.
    assert best.settings['model.network.remat'] == 'layer'
    assert best.batch_size == 4 * 16
    assert '--config.model.network.remat=layer' in plan_search.command(best)
    # What takes more time for an example is not tried where something else fits.
    assert 'full' not in {one.settings['model.network.remat'] for one in plans}
    assert {one.mesh['context'] for one in plans} == {1}


def test_batches_grow_until_one_does_not_fit(searched):
    _, plans, said = searched
    tried = [
        one.batch_size // 16
        for one in plans
        if one.settings['model.network.remat'] == 'layer' and one.mesh['fsdp'] == 16
    ]
    assert tried == [1, 2, 4, 8]
    # Copies of the whole state fit nowhere, so no second batch is tried.
    whole = [one for one in plans if one.mesh['fsdp'] == 1]
    assert {one.batch_size for one in whole} == {16}
    assert len(said) == len(plans)


@pytest.mark.parametrize(
    ('activations', 'rule', 'context'), [(10, 'full', 1), (20, 'transformer', 2)]
)
def test_what_takes_more_time_is_tried_where_nothing_else_fits(
    monkeypatch, activations, rule, context
):
    monkeypatch.setattr(plan_search, 'plan_training', plan)
    monkeypatch.setattr(plan_search, 'latent_rows', lambda _: 128)
    # Of 13.75 GiB beside the state.
    larger = dict.fromkeys(ACTIVATIONS, 20) | {'full': activations}
    monkeypatch.setitem(globals(), 'ACTIVATIONS', larger)
    config = load_config('configs/sdxl_base.py')
    config.model.network.remat = 'transformer'
    best = plan_search.search(config, TOPOLOGY, found=lambda _: None, show=lambda _: None)
    assert best.settings['model.network.remat'] == rule
    assert (best.mesh['context'], best.batch_size) == (context, 16 // context)
    assert f'--config.mesh.context={context}' in plan_search.command(best)


def test_the_configs_own_context_stays(monkeypatch):
    monkeypatch.setattr(plan_search, 'plan_training', plan)
    config, plans = load_config('configs/sdxl_base.py'), []
    config.mesh.context = 4
    plan_search.search(config, TOPOLOGY, found=plans.append, show=lambda _: None)
    assert {one.mesh['context'] for one in plans} == {4}
    assert {one.mesh['data'] * one.mesh['fsdp'] for one in plans} == {4}
    config.mesh.context = 3
    with pytest.raises(UserError, match=r'mesh.context is 3, which .* 16 devices'):
        plan_search.search(config, TOPOLOGY, found=plans.append, show=lambda _: None)


def test_where_nothing_fits_it_is_said(monkeypatch):
    small = topologies.parse('v5e-4')
    monkeypatch.setattr(plan_search, 'plan_training', plan)
    monkeypatch.setattr(plan_search, 'latent_rows', lambda _: 128)
    monkeypatch.setitem(globals(), 'STATE', 80 * GIB)
    said = []
    found = plan_search.search(
        load_config('configs/sdxl_base.py'), small, found=lambda _: None, show=said.append
    )
    assert found is None
    assert said[-1].startswith('nothing fits v5e-4')


def test_advice_names_settings():
    config = load_config('configs/sdxl_base.py')
    config.train.batch_size = 64
    config.mesh.update(data=16, fsdp=1)
    config.model.network.remat = 'none'
    words = plan_report.verdict(plan(config, TOPOLOGY))
    assert words.startswith('does not fit: 68.00 of 15.75 GiB')
    context = 'mesh.context=2 --config.train.batch_size=8'
    for setting in ('train.batch_size=16 ', 'network.remat=layer', 'mesh.fsdp=-1', context):
        assert setting in words
    config.model.network.remat = 'layer'
    assert 'network.remat=full' in plan_report.advice(plan(config, TOPOLOGY))
