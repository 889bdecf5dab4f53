"""Measures this project beside its PyTorch peer and prints both sides and their ratio.

make bench                                        # everything, about ten minutes on two cores
.venv/bin/python -m benchmarks.run small_train --json result.json
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from benchmarks import harness
from benchmarks.cases import CASES


def main() -> int:
    """Runs the named cases; 1 if a side failed, 2 if there is no peer to run."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.run', description=__doc__.split('\n')[0]
    )
    parser.add_argument(
        'names', nargs='*', metavar='NAME', help=f'any of: {", ".join(CASES)}; all if none'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the measurements here too')
    parser.add_argument('--rounds', type=int, default=2, help='fresh processes per side')
    parser.add_argument('--threads', type=int, default=2, help='threads (and cores) per side')
    parser.add_argument('--peer-python', default='.bench-venv/bin/python', help='where torch is')
    flags = parser.parse_args()
    unknown = [name for name in flags.names if name not in CASES]
    if unknown:
        parser.error(f'unknown name {unknown[0]!r}; choose from: {", ".join(CASES)}')
    if min(flags.rounds, flags.threads) < 1:
        parser.error('--rounds and --threads are at least 1')
    peer_python = harness.ROOT / flags.peer_python
    if not peer_python.exists():
        parser.error(f'{peer_python} does not exist; run `make bench`, which installs the peer')

    machine = f'{processor()}, {os.cpu_count()} cores, {flags.threads} threads per side'
    print(machine)
    report = {'machine': machine, 'cases': {}}
    for name in flags.names or CASES:
        case = CASES[name]
        print(f'\n{name}: {case.title}; {case.load}', flush=True)
        pythons = {'ours': sys.executable, 'peer': str(peer_python)}
        sides = [
            harness.Side(label=label, python=python, module=f'benchmarks.{module}')
            for (label, python), module in zip(pythons.items(), case.modules, strict=True)
        ]
        try:
            result = harness.compare(
                sides,
                name,
                threads=flags.threads,
                rounds=flags.rounds,
                log=lambda line: print(line, flush=True),
            )
        except RuntimeError as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
        print(harness.table(result['ours'], result['peer']), flush=True)
        report['cases'][name] = result
        if flags.json:
            flags.json.write_text(json.dumps(report, indent=2) + '\n')
    return 0


def processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


if __name__ == '__main__':
    sys.exit(main())
