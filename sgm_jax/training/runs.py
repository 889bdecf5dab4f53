"""Where runs are: their names, which one to go on with, and who started them with what.

logs/2026-01-31T12-00-00_svd_tiny_mine   a run that was given no --workdir, as sgm names it
logs/debug_runs/...                      where those of --debug end
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import jax

from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole
from sgm_jax.interop.workdir_files import CHECKPOINTS, is_workdir, latest_step
from sgm_jax.parallel import agreement

ROOT, DEBUG_RUNS = 'logs', 'debug_runs'
STARTS, ASIDE = 'starts.jsonl', 'aside'
PACKAGES = (
    'sgm_jax',
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'clu',
    'numpy',
)


def new_workdir(config: str, postfix: str = '') -> pathlib.Path:
    """logs/<time>_<config><postfix>; the same on all hosts, by the clock of the first."""
    now = agreement.of_first(int(datetime.datetime.now().timestamp()))
    time = datetime.datetime.fromtimestamp(now).strftime('%Y-%m-%dT%H-%M-%S')
    file, _, variant = config.partition(':')
    name = '_'.join(part for part in (pathlib.Path(file).stem, variant) if part)
    return pathlib.Path(ROOT) / f'{time}_{name}{re.sub(r"[^A-Za-z0-9._-]", "_", postfix)}'


def resumed(path: str | os.PathLike) -> tuple[pathlib.Path, int | None]:
    """A run's folder and the step to go on after (None: the newest), of the folder or one of its checkpoints.

    Raises:
      UserError: it is neither.
    """
    path = pathlib.Path(path).expanduser()
    if is_workdir(path):
        if latest_step(path) is None:
            raise UserError(
                f'--resume is {path}, which has no complete checkpoint yet; give --workdir'
            )
        return path, None
    workdir = path.parent.parent
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and is_workdir(workdir):
        if not path.is_dir():
            kept = sorted(int(p.name) for p in path.parent.glob('*') if p.name.isdigit())
            raise UserError(f'--resume is {path}, which is not there; {workdir} has steps {kept}')
        return workdir, int(path.name)
    raise UserError(
        f'--resume is {path}, neither the workdir of a run nor one of its {CHECKPOINTS}/STEP'
    )


def back_to(workdir: pathlib.Path, step: int) -> None:
    """Moves checkpoints that are newer than `step` aside, to aside/<time>/."""
    newer = [
        p for p in (workdir / CHECKPOINTS).glob('*') if p.name.isdigit() and int(p.name) > step
    ]
    if newer and jax.process_index() == 0:
        folder = workdir / ASIDE / datetime.datetime.now().strftime('%Y-%m-%dT%H-%M-%S')
        folder.mkdir(parents=True)
        for path in newer:
            path.rename(folder / path.name)
    agreement.wait_for_all('newer checkpoints are aside')


def move_aside(workdir: pathlib.Path) -> pathlib.Path:
    """Where a debug run goes when it is over: debug_runs/, beside other runs."""
    target = workdir.parent / DEBUG_RUNS / workdir.name
    target.parent.mkdir(exist_ok=True)
    return workdir.rename(target)


def record_start(workdir: pathlib.Path, *, step: int) -> None:
    """Adds a line to starts.jsonl: when, after which step, by which command, with which code and packages."""
    row = {
        'time': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'after_step': step,
        'command': [sys.executable, *sys.argv],
        'commit': commit(),
        'python': platform.python_version(),
        'packages': {name: _version(name) for name in PACKAGES},
        'devices': [jax.device_count(), jax.devices()[0].device_kind],
        'processes': jax.process_count(),
    }
    path = workdir / STARTS
    before = path.read_bytes() if path.is_file() else b''
    with whole(path) as file:
        file.write(before + (json.dumps(row) + '\n').encode())


def commit() -> str | None:
    """The code's git commit, with '+' where files differ from it; None outside of a repository."""
    here = pathlib.Path(__file__).parent
    git = lambda *words: subprocess.run(
        ['git', '-C', str(here), *words], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    try:
        # Installed into an environment inside another repository, it is not that one's code.
        git('ls-files', '--error-unmatch', pathlib.Path(__file__).name)
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
