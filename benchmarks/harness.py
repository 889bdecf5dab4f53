"""Runs the two sides of a case by turns, each in a fresh process, and compares them."""

import dataclasses
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison: a module that prints its measurements, and the Python that runs it."""

    label: str
    python: str
    module: str


def run(side: Side, case: str, threads: int) -> dict:
    """The measurements of one fresh process.

    Raises:
      RuntimeError: the process failed; its last words are in the message.
    """
    command = [side.python, '-m', side.module, case, '--threads', str(threads)]
    # Thread counts that both libraries read: neither side gets more than the other.
    limits = {'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **limits}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr[-3000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    sides: Sequence[Side], case: str, *, threads: int, rounds: int, log: Callable[[str], None]
) -> dict[str, dict]:
    """Every side's summary under its label, measured A B A B ... so that both meet the same machine."""
    runs = {side.label: [] for side in sides}
    for turn in range(rounds):
        for side in sides:
            result = run(side, case, threads)
            runs[side.label].append(result)
            times = ' '.join(f'{t:.2f}' for t in result['seconds'])
            log(f'  round {turn + 1} of {rounds}, {side.label}: {times} s')
    return {label: summary(results) for label, results in runs.items()}


def summary(results: Sequence[dict]) -> dict:
    """One side's rounds as one: all times together, the largest memory, the quickest compile."""
    times = [t for result in results for t in result['seconds']]
    compiles = [r['compile_seconds'] for r in results if 'compile_seconds' in r]
    return dict(
        name=results[0]['name'],
        parameters=results[0].get('parameters'),
        min_seconds=min(times),
        median_seconds=statistics.median(times),
        peak_bytes=max(r['peak_bytes'] for r in results),
        compile_seconds=min(compiles) if compiles else None,
        seconds=times,
    )


def table(ours: dict, peer: dict) -> str:
    """The two summaries side by side, with ours divided by the peer's."""
    rows = [
        ('parameters', 'parameters', 1e-6, 'M'),
        ('time, least', 'min_seconds', 1, 's'),
        ('time, median', 'median_seconds', 1, 's'),
        ('peak memory', 'peak_bytes', 2**-30, 'GiB'),
        ('compile', 'compile_seconds', 1, 's'),
    ]
    lines = [f'  {"":14}{"ours":>14}{"peer":>14}{"ratio":>9}']
    for title, key, scale, unit in rows:
        if ours[key] is None and peer[key] is None:
            continue
        cells = [
            '-' if side[key] is None else f'{side[key] * scale:.2f} {unit}' for side in (ours, peer)
        ]
        ratio = '-' if None in (ours[key], peer[key]) else f'{ours[key] / peer[key]:.2f}'
        lines.append(f'  {title:14}{cells[0]:>14}{cells[1]:>14}{ratio:>9}')
    return '\n'.join([f'  ours: {ours["name"]}', f'  peer: {peer["name"]}', *lines])
