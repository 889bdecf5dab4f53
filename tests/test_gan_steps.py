"""Adversarial training: the steps of a PyTorch run, and a run that is taken up between the players' turns."""

import json

import gan_model
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpointed import state_of
from gan_case import pictures

from sgm_jax.errors import UserError
from sgm_jax.training.loop import train
from sgm_jax.training.setup import Setup


def logged(setup: Setup, wanted: list[dict], change: float = 0.0) -> tuple[list[dict], float]:
    """What four steps log, and logvar after them, with every number of the pictures changed by `change`."""
    state, frozen = gan_model.start(setup)
    found = []
    for number, values in enumerate(wanted):
        batch = {'jpg': jnp.asarray(pictures(number)) + change}
        turn = setup.engine.turn(number)
        state, logs = setup.step(turn, state, frozen, batch, jax.random.key(0))
        found.append({name: float(logs[f'train/{name}']) for name in values})
    return found, float(state.params['loss']['logvar'])


def test_four_steps_are_those_of_pytorch():
    """To 1e-4, or to what three last bits of the pictures change, where that is more.

    Adam's first steps follow the signs of gradients, however small, so from the third step on a last bit,
    which differs between processors, is seen in the third digit.
    """
    wanted = json.loads((golden.FOLDER / 'gan_steps.json').read_text())
    setup = Setup.from_config(gan_model.config())
    found, logvar = logged(setup, wanted['steps'])
    moved = [logged(setup, wanted['steps'], change)[0] for change in (3e-7, -3e-7)]
    for number, values in enumerate(wanted['steps']):
        for name, value in values.items():
            here = found[number][name]
            last_bits = max(abs(other[number][name] - here) for other in moved)
            tolerance = max(1e-4 * abs(value), 2 * last_bits)
            assert tolerance <= (1e-4 if number < 2 else 0.02) * abs(value), (number, name)
            assert abs(here - value) <= tolerance, (number, name)
    golden.assert_close(logvar, wanted['logvar'], 1e-4)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """A run of four steps, by turns."""
    workdir = tmp_path_factory.mktemp('gan') / 'straight'
    config = gan_model.config(image_every=4, validate_every=4)
    return config, workdir, train(config, workdir)


@pytest.mark.parametrize('stop', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_stopped_between_the_turns_goes_on_exactly(straight, tmp_path, stop):
    config, workdir, result = straight
    assert train(gan_model.config(steps=stop), tmp_path).step == stop
    again = train(gan_model.config(image_every=4, validate_every=4), tmp_path)
    assert dict(again.scalars).keys() == dict(result.scalars).keys()
    for step in range(stop, 5):
        one, other = state_of(config, workdir, step), state_of(config, tmp_path, step)
        assert one[1] == other[1]
        jax.tree.map(np.testing.assert_array_equal, one[0], other[0])


def test_turns_teach_one_player_each(straight):
    config, workdir, _ = straight
    states = [state_of(config, workdir, step)[0] for step in (1, 2, 3)]
    same = lambda a, b: all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    after_generator, after_judge, last = states
    assert same(after_generator.params, after_judge.params)
    assert not same(after_generator.adversary.params, after_judge.adversary.params)
    assert same(after_judge.adversary.params, last.adversary.params)
    assert not same(after_judge.params, last.params)
    # The norms look at every batch: twice (real and fake) when it is the discriminator's.
    counts = [int(state.adversary.statistics['main'][3]['num_batches_tracked']) for state in states]
    assert counts == [1, 3, 4]


def test_a_run_shows_both_players(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, workdir, _ = straight
    events = EventAccumulator(str(workdir / 'logs'), size_guidance={'tensors': 0})
    events.Reload()
    names = set(events.Tags()['tensors'] + events.Tags()['images'])
    shown = {'inputs', 'reconstructions', 'reconstructions_ema', 'diff', 'diff_boost'}
    assert {*shown, 'vis_logits', 'vis_logits_blended'} <= names
    logged = {'loss/total', 'loss/nll', 'loss/rec', 'loss/g', 'loss/disc', 'kl_loss'}
    logged |= {'scalars/logvar', 'scalars/d_weight', 'logits/real', 'logits/fake'}
    assert {f'train/{name}' for name in logged} <= names
    assert {
        'val/psnr',
        'val_ema/psnr',
        'val_ema/ssim',
        'val_ema/loss/lpips',
        'disc_grad_norm',
    } <= names


def test_each_learning_rate_is_of_its_own_steps():
    config = gan_model.config()
    config.schedule = {'name': 'cosine'}
    config.disc_optimizer = {'lr_factor': 0.5}
    setup = Setup.from_config(config)
    state, frozen = gan_model.start(setup)
    logged = []
    for number in range(4):
        batch = {'jpg': jnp.asarray(pictures(number))}
        turn = setup.engine.turn(number)
        state, scalars = setup.step(turn, state, frozen, batch, jax.random.key(0))
        names = ('learning_rate', 'disc_learning_rate')
        logged.append({name: float(scalars[name]) for name in names if name in scalars})
    peak, second = 1e-3, 1e-3 * (0.5 + 0.5 * 0.5**0.5)  # after one of four steps
    wanted = [
        {'learning_rate': peak},
        {'disc_learning_rate': 0.5 * peak},
        {'learning_rate': second},
        {'disc_learning_rate': 0.5 * second},
    ]
    for found, values in zip(logged, wanted, strict=True):
        assert found == pytest.approx(values, rel=1e-5)


@pytest.mark.slow
def test_both_may_learn_from_every_batch():
    config = gan_model.config()
    config.model.loss.update(alternate=False, disc_start=1)
    setup = Setup.from_config(config)
    assert [setup.engine.turn(step) for step in range(3)] == ['alone', 'both', 'both']
    state, frozen = gan_model.start(setup)
    batch = {'jpg': jnp.asarray(pictures(0))}
    found = setup.engine.gradients('both', state.players, frozen, batch, jax.random.key(0))
    wanted = json.loads((golden.FOLDER / 'gan_steps.json').read_text())['steps'][0]
    for name, value in wanted.items():
        golden.assert_close(found.logs[f'train/{name}'], value, 1e-4)
    assert found.adversary is not None
    assert 'train/loss/disc' in found.logs


def test_groups_have_learning_rates_of_their_own():
    config = gan_model.config()
    config.optimizer.groups = ({'pattern': 'encoder', 'lr_factor': 0.0},)
    config.disc_optimizer = {'lr_factor': 0.0}
    setup = Setup.from_config(config)
    state, frozen = gan_model.start(setup)
    before = jax.tree.map(np.asarray, state)
    for number in range(2):
        batch = {'jpg': jnp.asarray(pictures(number))}
        turn = setup.engine.turn(number)
        state, _ = setup.step(turn, state, frozen, batch, jax.random.key(0))
    moved = lambda a, b: any(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert not moved(before.params['encoder'], state.params['encoder'])
    assert moved(before.params['decoder'], state.params['decoder'])
    assert not moved(before.adversary.params, state.adversary.params)
    assert moved(before.adversary.statistics, state.adversary.statistics)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'loss.discriminator.n_layers': 3}, '40x40 are smaller than the 70x70 .*n_layers=2'),
        ({'loss.disc_loss': 'wgan'}, "unknown name 'wgan'; choose one of: hinge, vanilla"),
        ({'loss.disc_start': -1}, 'disc_start is -1; give 0 or more'),
        ({'loss.disc_strat': 3}, "unknown key 'disc_strat'; did you mean 'disc_start'"),
        ({'loss.discriminator.ndff': 3}, "unknown key 'ndff'; did you mean 'ndf'"),
        (
            {'trained': ('decodr',)},
            "no parameter begins with 'decodr'; there are: decoder, encoder",
        ),
        ({'lpips_checkpoint': '/nowhere.safetensors'}, '/nowhere.safetensors'),
        ({'trained': ('decoder',)}, 'give --config.model.checkpoint=PATH'),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    config = gan_model.config()
    with config.unlocked():
        for name, value in change.items():
            *path, last = name.split('.')
            node = config.model
            for key in path:
                node = node[key]
            node[last] = value
    with pytest.raises(UserError, match=words):
        train(config, tmp_path / 'run')


def test_groups_that_match_nothing_are_named():
    config = gan_model.config()
    config.optimizer.groups = ({'pattern': 'nothing', 'lr_factor': 0.1},)
    with pytest.raises(UserError, match=r"optimizer.groups\[0\]: no parameter begins with 'noth"):
        Setup.from_config(config)


def test_accumulating_goes_with_both_at_once():
    with pytest.raises(
        UserError, match=r'train\.accumulate goes with model\.loss\.alternate=False'
    ):
        Setup.from_config(gan_model.config(accumulate=2))
