"""Runs of several processes on this machine, joined over the loopback interface."""

import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
TRAIN = ('train.py', '--notest')
# The tests' tiny model as a config file that a command line can name.
CONFIG = """import sys
sys.path.insert(0, {tests!r})
import {model} as model


def get_config(variant=""):
    config = model.config(**{train!r})
    config.mesh = {mesh!r}
    {more}
    return config
"""


def write_config(
    path: pathlib.Path, *, mesh: dict, more: str = '', model: str = 'tiny', **train
) -> pathlib.Path:
    """A file for --config, of the model that a module of the tests describes."""
    tests = str(ROOT / 'tests')
    path.write_text(CONFIG.format(tests=tests, train=train, mesh=mesh, more=more, model=model))
    return path


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many virtual devices, which compiles quickly."""
    flags = f'{QUICK} --xla_force_host_platform_device_count={devices}'
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    own = dict(JAX_PLATFORMS='cpu', XLA_FLAGS=flags, PYTHONUNBUFFERED='1', PYTHONPATH=path)
    return {**os.environ, **own}


@dataclasses.dataclass
class Pair:
    """Two processes of one run, and the files that their outputs go to."""

    processes: list[subprocess.Popen]
    outputs: list[pathlib.Path]

    def wait(self, seconds: float = 400) -> list[int]:
        """Their exit codes."""
        return [process.wait(seconds) for process in self.processes]

    def said(self, index: int) -> str:
        """What a process has written."""
        return self.outputs[index].read_text()

    def wait_until(self, condition, seconds: float = 400) -> None:
        """Polls; fails where a process has ended instead."""
        deadline = time.monotonic() + seconds
        while not condition():
            codes = [process.poll() for process in self.processes]
            told = '\n'.join(map(self.said, range(len(codes))))
            assert codes == [None] * len(codes), told
            assert time.monotonic() < deadline, told
            time.sleep(0.05)


@contextlib.contextmanager
def started(
    words: list,
    folder: pathlib.Path,
    *,
    count: int = 2,
    devices: int = 4,
    program: tuple[str, ...] = TRAIN,
) -> Iterator[Pair]:
    """A program with these words in `count` processes; what still runs at the end is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes, outputs = [], []
    with contextlib.ExitStack() as stack:
        for index in range(count):
            outputs.append(folder / f'process_{index}.txt')
            file = stack.enter_context(outputs[-1].open('w'))
            told = (f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}')
            line = [sys.executable, *program, *map(str, words), *told, f'--process_id={index}']
            options = dict(cwd=ROOT, env=environment(devices), stdout=file, stderr=file)
            processes.append(subprocess.Popen(line, **options))
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        yield Pair(processes, outputs)


def mistakes(text: str) -> list[str]:
    """The lines that begin with 'error: '."""
    return re.findall(r'^error: .*$', text, re.MULTILINE)
