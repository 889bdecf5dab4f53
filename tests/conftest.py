"""Shared runs: a run is trained once and looked at by many tests."""

import contextlib
import dataclasses
import os
import pathlib

import jax
import ml_collections
import pytest
import tiny

from sgm_jax.parallel import compiler
from sgm_jax.training.loop import Result, train


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


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    result: Result


@pytest.fixture(scope='session')
def run(tmp_path_factory) -> Run:
    """Four steps of the tiny model, straight through, with pictures at the end."""
    workdir = tmp_path_factory.mktemp('runs') / 'straight'
    config = tiny.config(image_every=4)
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
