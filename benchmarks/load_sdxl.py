"""How long loading SDXL takes beside reading its file, and how much memory.

  python -m benchmarks.load_sdxl [FOLDER]

Writes a file of SDXL base's names and shapes in float16 (6.9 GB of random numbers, kept in FOLDER for
another run, else removed). Then, by turns and each in a fresh process, it is read into memory as it is, and
loaded with `sgm_jax.load`: from the disk, as a user's first picture needs it, and from the system's cache.
Reading it in pieces, each over the last one, is timed beside: it needs no memory, which alone takes seconds
where a host gives it out page by page.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import process
from sgm_jax.parallel.host_memory import restart_with_large_pages

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIECE = 64 * 2**20
ROUNDS = 3


def main() -> None:
    """Prints both times, their ratio, and the peak memory beside the file's size."""
    if sys.argv[1:2] == ['--side']:
        if sys.argv[2] == 'load':
            restart_with_large_pages()  # as sample.py does
        print(json.dumps(SIDES[sys.argv[2]](pathlib.Path(sys.argv[3]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / 'sdxl.safetensors'
        if not path.exists():
            write(path)
        for cached in (False, True):
            found = {side: [] for side in SIDES}
            for _ in range(ROUNDS):
                for side in SIDES:
                    found[side].append(run(side, path, cached=cached))
            report(found, path.stat().st_size, 'from the cache' if cached else 'from the disk')


def report(found: dict[str, list[dict]], size: int, where: str) -> None:
    """Prints all times, and the ratio of the least."""
    for side, runs in found.items():
        print(f'{side} {where}:', ', '.join(f'{one["seconds"]:.1f}' for one in runs), 's')
    least = {side: min(one['seconds'] for one in runs) for side, runs in found.items()}
    peak = max(one['peak'] for one in found['load'])
    print(
        f'{size / 1e9:.2f} GB {where}: read in {least["read"]:.1f} s, loaded in {least["load"]:.1f} s, '
        f'{least["load"] / least["read"]:.2f} of it, with {peak / size:.2f} of its size in memory'
    )


def run(side: str, path: pathlib.Path, *, cached: bool) -> dict:
    """The measurements of a fresh process."""
    if cached:
        pieces(path)
    else:
        with path.open('rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, '-m', 'benchmarks.load_sdxl', '--side', side, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def read(path: pathlib.Path) -> dict:
    """Reads the file into memory."""
    start = time.perf_counter()
    held = path.read_bytes()
    return {'seconds': time.perf_counter() - start, 'bytes': len(held)}


def pieces(path: pathlib.Path) -> dict:
    """Reads the file, and holds a piece of it."""
    start = time.perf_counter()
    buffer = bytearray(PIECE)
    with path.open('rb', buffering=0) as file:
        while file.readinto(buffer):
            pass
    return {'seconds': time.perf_counter() - start}


def load(path: pathlib.Path) -> dict:
    """Loads the model; imports are not counted."""
    import jax

    import sgm_jax

    loader = sgm_jax.load
    start = time.perf_counter()
    model = loader(path, str(ROOT / 'configs' / 'sdxl_base.py'))
    jax.block_until_ready((model.params, model.frozen))
    return {'seconds': time.perf_counter() - start, 'peak': process.peak_bytes()}


SIDES = {'read': read, 'pieces': pieces, 'load': load}


def write(path: pathlib.Path) -> None:
    """A file of SDXL base's shapes."""
    from sgm_jax.config import load_config
    from sgm_jax.engines import build
    from sgm_jax.interop import safetensors_files, to_sgm
    from sgm_jax.interop.tensors import Lazy, Tensors

    engine = build(load_config(str(ROOT / 'configs' / 'sdxl_base.py')))
    shapes = {k: v.shape for k, v in to_sgm(engine.structure.shape).items()}
    noise = np.random.default_rng(0).standard_normal(2**20).astype(np.float16)

    def tensor(shape: tuple[int, ...]) -> Lazy:
        count = int(np.prod(shape))
        make = lambda: np.resize(noise, count).reshape(shape)
        return Lazy(shape, np.dtype(np.float16), make)

    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(path, Tensors({k: tensor(s) for k, s in shapes.items()}))


if __name__ == '__main__':
    main()
