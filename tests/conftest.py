"""Shared runs: a run is trained once and looked at by many tests."""

import contextlib
import dataclasses
import json
import os
import pathlib

import jax
import ml_collections
import pytest
import tiny

from sgm_jax.config import plain
from sgm_jax.parallel import compiler
from sgm_jax.training import setup as setup_module
from sgm_jax.training.loop import Result, train
from sgm_jax.training.options import Options
from sgm_jax.training.setup import Setup


@pytest.fixture(scope='session', autouse=True)
def _compile_once(tmp_path_factory):
    """What one test has compiled no other compiles again; and quickly, for little is run."""
    options = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
    compiler.OPTIONS['cpu'] = {**compiler.OPTIONS['cpu'], **options}
    # Next to the folders of pytest-xdist's workers: they share it.
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if 'PYTEST_XDIST_WORKER' in os.environ else shared
    jax.config.update('jax_compilation_cache_dir', str(shared / 'compiled'))
    # Processes that tests start keep what they compile there too, never in the home folder.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(shared / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


# A file is one process's: a long one that begins last runs alone at the end.
LONGEST = (
    'test_memorise.py',
    'test_sampling.py',
    'test_command_lines.py',
    'test_images.py',
    'test_plan.py',
    'test_gan_steps.py',
    'test_cache_latents.py',
    'test_autoencoding.py',
    'test_training_run.py',
    'test_convert.py',
)


def pytest_collection_modifyitems(items):
    """The longest files first; all others as they are."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


# What neither the engine nor the compiled functions of a run depend on.
_FREE = {'seed', 'data', 'pictures'}
_FREE_TRAIN = {field.name for field in dataclasses.fields(Options)}
_FREE_TRAIN -= {'batch_size', 'accumulate', 'clip_norm', 'ema_decay'}


@pytest.fixture(scope='session', autouse=True)
def _trace_once():
    """Runs of one config share their functions: tracing and loading them is most of a short run's time."""
    make, init, known = Setup.from_config, setup_module.make_init, {}

    def key(config, devices) -> str:
        node = plain(config)
        train = {k: v for k, v in node['train'].items() if k not in _FREE_TRAIN}
        if node.get('schedule', {}).get('name', 'constant') != 'constant':
            train['steps'] = node['train']['steps']
        node = {k: v for k, v in node.items() if k not in _FREE} | {'train': train}
        return json.dumps([node, repr(devices)], sort_keys=True, default=repr)

    def shared(config, devices=None):
        # The config is checked every time.
        setup = make(config, devices)
        one = known.setdefault(key(config, devices), setup)
        parts = ('engine', 'mesh', 'optimizers', 'wanted', 'step')
        return dataclasses.replace(setup, **{name: getattr(one, name) for name in parts})

    def init_once(engine, optimizers, wanted):
        place = id(engine), id(optimizers)
        if place not in known:
            # What it was made of lives as long as it does, or another might get its id.
            known[place] = init(engine, optimizers, wanted), engine, optimizers
        return known[place][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setup, 'from_config', shared)
        patch.setattr(setup_module, 'make_init', init_once)
        yield


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    result: Result


@pytest.fixture(scope='session')
def run(tmp_path_factory) -> Run:
    """Four steps of the tiny model, straight through, with pictures and a validation at the end."""
    workdir = tmp_path_factory.mktemp('runs') / 'straight'
    config = tiny.config(image_every=4, validate_every=4)
    return Run(config, workdir, train(config, workdir))


@pytest.fixture(scope='session')
def compilations():
    """A context whose value, called afterwards, is how often JAX compiled in it (or asked its cache)."""
    seen = []
    # JAX reports the time of each compilation under this name.
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            seen.append(name) if name.endswith('backend_compile_duration') else None
        )
    )

    @contextlib.contextmanager
    def counting():
        before = len(seen)
        yield lambda: len(seen) - before

    return counting
