"""A folder of 100 000 captioned pictures: seconds until the first batch, and memory over 10 000 batches.

python -m benchmarks.data_scale [--folder /tmp/scale] [--rows 100000] [--batches 10000] [--threads 2]

The folder is made once (tiny pictures, captions in metadata.jsonl) and kept. Two starts are timed, each in
a process of its own: the first has no index of the pictures' sizes, the second reads what the first has kept.
"""

import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

FOLDER = flags.DEFINE_string('folder', '/tmp/sgm_jax_scale', 'where the pictures are made and kept')
ROWS = flags.DEFINE_integer('rows', 100_000, 'pictures', lower_bound=100)
BATCHES = flags.DEFINE_integer('batches', 10_000, 'batches read in the second start')
BATCH = flags.DEFINE_integer('batch', 8, 'pictures of a batch', lower_bound=1)
THREADS = flags.DEFINE_integer('threads', 2, 'that read ahead', lower_bound=0)
CHILD = flags.DEFINE_integer('child', -1, 'batches to read: set for the processes that are timed')

SIZES = ((20, 28), (28, 20), (24, 24), (16, 32))


def make(folder: pathlib.Path, rows: int) -> None:
    """Pictures of a few hundred bytes in folders of a thousand."""
    from PIL import Image

    encoded = []
    for size in SIZES:
        pixels = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, 'JPEG', quality=50)
        encoded.append(buffer.getvalue())
    lines = []
    for row in range(rows):
        place = folder / f'{row // 1000:04}' / f'{row:07}.jpg'
        if row % 1000 == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded[row % len(encoded)])
        name = str(place.relative_to(folder))
        lines.append(json.dumps({'file_name': name, 'text': f'picture {row}'}))
    (folder / 'metadata.jsonl').write_text('\n'.join(lines) + '\n')


def memory() -> float:
    """Resident MiB of this process."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def child(folder: pathlib.Path, batches: int) -> None:
    """Prints JSON: seconds to the source and to the first batch, and memory along the way."""
    from sgm_jax.data import pipeline

    start = time.perf_counter()
    node = {
        'name': 'captioned_pictures',
        'path': str(folder),
        'height': 16,
        'width': 16,
        'buckets': ((16, 16), (16, 24), (24, 16)),
        'flip': True,
    }
    source = pipeline.make_source(node)
    listed = time.perf_counter() - start
    iterator = pipeline.make_iterator(
        source, batch_size=BATCH.value, seed=0, num_threads=THREADS.value
    )
    next(iterator)
    first = time.perf_counter() - start
    marks = {}
    for number in range(2, batches + 1):
        next(iterator)
        if number % max(1, batches // 10) == 0:
            marks[number] = round(memory(), 1)
    rate = (batches - 1) * BATCH.value / (time.perf_counter() - start - first) if batches > 1 else 0
    found = dict(listed=listed, first=first, rate=rate, examples=len(source), memory=marks)
    print(json.dumps(found))


def main(argv: list[str]) -> None:
    """Makes the folder where it is missing, and times two starts."""
    folder = pathlib.Path(FOLDER.value)
    if CHILD.value >= 0:
        child(folder / 'pictures', CHILD.value)
        return
    if not (folder / 'pictures' / 'metadata.jsonl').is_file():
        start = time.perf_counter()
        make(folder / 'pictures', ROWS.value)
        print(f'made {ROWS.value} pictures in {time.perf_counter() - start:.0f} s')
    for old in (folder / 'cache').rglob('*.npz'):
        old.unlink()
    rows = []
    for name, batches in (('first index', 1), ('after it', BATCHES.value)):
        done = subprocess.run(
            [sys.executable, '-m', 'benchmarks.data_scale', f'--child={batches}', *argv[1:]]
            + [f'--{flag.name}={flag.value}' for flag in (FOLDER, BATCH, THREADS)],
            env={**os.environ, 'SGM_JAX_CACHE': str(folder / 'cache')},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows.append((name, json.loads(done.stdout.splitlines()[-1])))
    for name, found in rows:
        print(
            f'{name:12} {found["examples"]} examples: source {found["listed"]:.2f} s, first batch '
            f'{found["first"]:.2f} s'
        )
    found = rows[-1][1]
    marks = {int(number): value for number, value in found['memory'].items()}
    print(f'{found["rate"]:.0f} examples per second with {THREADS.value} threads')
    print('MiB after batches: ' + ', '.join(f'{n}: {m}' for n, m in marks.items()))
    growth = marks[max(marks)] - marks[min(marks)]
    print(f'growth from the first mark to the last: {growth:+.1f} MiB')


if __name__ == '__main__':
    app.run(main)
