"""The table of docs/recipes/plans.md: full-size models compiled for TPUs and GPUs that are not here.

python -m benchmarks.plans            compiles what plans.jsonl has not, one after the other (hours)
python -m benchmarks.plans --only svd/train/v5p-64
python -m benchmarks.plans --write    writes the page from plans.jsonl, and compiles nothing

Each case is a process of `sgm_jax.tools.plan`, whose result is kept as a line of plans.jsonl as soon as it is
there: what was compiled once is not compiled again. The most important come first.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sgm_jax.interop.whole_files import whole
from sgm_jax.parallel.topologies import GIB, parse
from sgm_jax.tools import plan_report
from sgm_jax.tools.plan_file import from_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'plans.jsonl'
PAGE = ROOT / 'docs' / 'recipes' / 'plans.md'
MARK = '<!-- The rest is written by python -m benchmarks.plans --write -->'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A row: a config with its flags, on a topology. `batch` is of the whole mesh, or samples at once."""

    model: str
    config: str
    work: str
    topology: str
    batch: int = 1
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """By which it is kept."""
        return '/'.join((self.model, self.work, self.topology))

    def command(self, results: str) -> list[str]:
        """Of the process that compiles it."""
        words = ['--config', self.config, '--topology', self.topology, '--json', results]
        if self.work == 'sample':
            words += ['--sample', f'--samples={self.batch}']
        else:
            words += [f'--config.train.batch_size={self.batch}']
        return [sys.executable, '-m', 'sgm_jax.tools.plan', *words, *self.flags]


CONFIGS = {
    'svd': 'configs/svd.py',
    'svd-xt': 'configs/svd.py:xt',
    'sdxl': 'configs/sdxl_base.py',
    'sv3d': 'configs/sv3d.py',
    'f8': 'configs/autoencoder_kl_f8.py',
}
# A sample is drawn on one device: what one chip of a slice does, all do.
TOPOLOGIES = {
    'train': ('v5p-64', 'v5e-256', '8xH100', 'v6e-64', 'v5e-16'),
    'sample': ('v5e-1', 'v5p:1x1x1', 'v6e-1', '1xH100'),
}
# Those that say most, first; then all that is left.
FIRST = (
    ('svd-xt', 'train', '8xH100'),
    ('svd-xt', 'train', 'v5p-64'),
    ('svd', 'train', 'v5e-256'),
    ('svd', 'sample', 'v5e-1'),
    ('svd', 'sample', '1xH100'),
    ('f8', 'sample', '1xH100'),
    ('f8', 'train', '8xH100'),
    ('sdxl', 'train', '8xH100'),
    ('sdxl', 'sample', '1xH100'),
    ('f8', 'sample', 'v5e-1'),
    ('f8', 'train', 'v5e-16'),
    ('sv3d', 'train', '8xH100'),
)


def cases() -> list[Case]:
    """All rows, the most important first."""
    rest = [
        (model, work, topology)
        for work, topologies in TOPOLOGIES.items()
        for topology in topologies
        for model in CONFIGS
    ]
    return [_case(*row) for row in dict.fromkeys((*FIRST, *rest))]


def _case(model: str, work: str, topology: str) -> Case:
    batch = parse(topology).size if work == 'train' else 1
    flags = ()
    if work == 'train' and topology == 'v5e-256' and model != 'f8':
        # 256 divides few of the networks' widths (320, 640, 1280), 64 all.
        flags = ('--config.mesh.data=4', '--config.mesh.fsdp=64')
    if work == 'train' and model == 'svd-xt' and parse(topology).kind == 'v5e':
        # With the config's rule ('block') 25 frames take 16.5 GiB of a v5p, and a v5e has 15.75.
        flags += ('--config.model.network.remat=full',)
    if work == 'sample' and model != 'f8' and parse(topology).platform == 'tpu':
        flags = ('--dtype=bfloat16',)
        # SVD's decoder takes 24 GiB for fourteen frames at once, and sees two on either side of a chunk.
        chunk = {'v5e-1': 2, 'v6e-1': 7}.get(topology)
        if chunk and model != 'sdxl':
            flags += (f'--config.sample.decode_chunk={chunk}',)
    return Case(
        model=model,
        config=CONFIGS[model],
        work=work,
        topology=topology,
        batch=batch,
        flags=flags,
    )


def compile_missing(only: list[str]) -> None:
    """Runs what has no result yet."""
    known = results()
    for case in cases():
        if case.name in known or (only and case.name not in only):
            continue
        print(f'{case.name} ...', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'plan.jsonl'
            done = subprocess.run(case.command(str(file)), cwd=ROOT, capture_output=True, text=True)
            if not file.exists():
                print(done.stderr[-2000:], file=sys.stderr)
                continue
            plan = json.loads(file.read_text())
        with RESULTS.open('a', encoding='utf-8') as out:
            out.write(json.dumps({'case': case.name, **plan}) + '\n')
        print(done.stdout, flush=True)


def results() -> dict[str, dict]:
    """The plans that are kept, by case; of a case compiled twice the newest."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines() if line]
    return {line.pop('case'): line for line in lines}


def page() -> str:
    """What follows MARK on the page."""
    known = results()
    lines = [
        '| model | work | topology | mesh | batch | GiB per device | of | fits | step or sample, ms | MFU '
        '| compiled in | flags |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    notes = []
    for case in cases():
        row = [case.model, case.work, case.topology]
        if case.name not in known:
            lines.append(f'| {" | ".join(row)} | not compiled | | | | | | | | |')
            continue
        plan = from_json(known[case.name])
        cells = [*row, *_cells(plan), ' '.join(f'`{flag}`' for flag in case.flags)]
        lines.append(f'| {" | ".join(cells)} |')
        if not plan_report.fits(plan):
            notes.append(f'- {case.name}: {plan_report.verdict(plan)}')
    return '\n'.join(
        [*lines, *(['', 'What would make the others fit:', '', *notes] if notes else [])]
    )


def _cells(plan) -> list[str]:
    memory = parse(plan.topology).chip.memory
    program = plan.programs.get('step') or next(iter(plan.programs.values()))
    least, most = plan_report.seconds(plan)
    known = not program.needed
    # What a loop of unknown length does is counted once.
    whole_time = not any(x.open_loops for x in plan.programs.values())
    low, high = f'{1e3 * least:.0f}', f'{1e3 * most:.0f}'
    shown = low if low == high else f'{low} to {high}'
    shown = shown if whole_time else f'over {low}'
    total = sum(x.seconds for x in plan.programs.values())
    useful = sum(plan_report.estimated(plan, name).flops * n for name, n in plan.runs.items())
    peak = parse(plan.topology).chip.flops
    return [
        ', '.join(f'{axis}={size}' for axis, size in plan.mesh.items() if size > 1) or 'one device',
        str(plan.batch_size),
        f'{plan_report.peak(plan) / GIB:.1f}',
        f'{memory / GIB:.1f}',
        'yes' if plan_report.fits(plan) else 'no',
        shown if known else '',
        f'{useful / (most * peak):.0%}' if known and most and whole_time else '',
        f'{total:.0f} s',
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--only', nargs='*', default=[], help='cases, such as svd/train/v5p-64')
    parser.add_argument('--write', action='store_true', help='write the page; compile nothing')
    flags = parser.parse_args()
    if not flags.write:
        compile_missing(flags.only)
    head = PAGE.read_text().split(MARK, 1)[0]
    with whole(PAGE) as file:
        file.write(f'{head}{MARK}\n\n{page()}\n'.encode())


if __name__ == '__main__':
    main()
