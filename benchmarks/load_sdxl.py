"""How long loading SDXL takes beside reading its file, and how much memory.

  python -m benchmarks.load_sdxl [FOLDER]

Writes a file of SDXL base's names and shapes in float16 (6.9 GB of random numbers, kept in FOLDER for
another run, else removed), reads it once plainly, in pieces of 64 MB, and loads it with `sgm_jax.load`, each
in a fresh process. Both find the file in the system's cache, if it has room.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import process

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIECE = 64 * 2**20


def main() -> None:
    """Prints both times, their ratio, and the peak memory beside the file's size."""
    if sys.argv[1:2] == ['--side']:
        print(json.dumps({'plain': plain, 'load': load}[sys.argv[2]](pathlib.Path(sys.argv[3]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / 'sdxl.safetensors'
        if not path.exists():
            write(path)
        plainly, loaded = run('plain', path), run('load', path)
        size = path.stat().st_size
        print(f'{size / 1e9:.2f} GB: read in {plainly["seconds"]:.1f} s')
        print(
            f'loaded in {loaded["seconds"]:.1f} s, {loaded["seconds"] / plainly["seconds"]:.2f} of it'
        )
        print(f'peak memory {loaded["peak"] / 1e9:.2f} GB, {loaded["peak"] / size:.2f} of the file')


def run(side: str, path: pathlib.Path) -> dict:
    """The measurements of a fresh process."""
    command = [sys.executable, '-m', 'benchmarks.load_sdxl', '--side', side, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def plain(path: pathlib.Path) -> dict:
    """Reads the file."""
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
