"""Does a class-conditional model draw what it is asked? A classifier of real digits says.

  python -m benchmarks.digits [WORKDIR]

Trains configs/mnist.py:tiny (in WORKDIR, where a finished run is taken as it is; else in a temporary
folder), samples 30 digits of each class, and asks a support-vector classifier from scikit-learn, which was
trained on the real digits that the model learned from. Its own accuracy on real digits that neither has seen
is printed beside.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np

EACH = 30


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(folder or temporary) / ('' if folder else 'run')
        measure(workdir)


def measure(workdir: pathlib.Path) -> None:
    from sgm_jax import load
    from sgm_jax.config import load_config
    from sgm_jax.sampling import media
    from sgm_jax.training.loop import train

    start = time.perf_counter()
    result = train(load_config('configs/mnist.py:tiny'), workdir)
    trained = time.perf_counter() - start
    asked = np.repeat(np.arange(10), EACH)
    start = time.perf_counter()
    images = load(workdir).sample(cls=list(range(10)), count=EACH, batch=50)
    drawn = time.perf_counter() - start
    classify, real = classifier()
    told = classify(images)
    print(
        f'trained to step {result.step} in {trained:.0f} s here, drew {len(images)} in {drawn:.0f} s'
    )
    print(f'recognised as the asked digit: {(told == asked).mean():.1%} (real digits: {real:.1%})')
    worst = min(range(10), key=lambda digit: (told == asked)[asked == digit].mean())
    share = (told == asked)[asked == worst].mean()
    print(f'the worst: {worst}, {share:.0%}')
    shown = images.reshape(10, EACH, *images.shape[1:])[:, :10].reshape(-1, *images.shape[1:])
    media.write_image(workdir / 'digits.png', media.grid(shown, columns=10))
    print(f'look: {workdir / "digits.png"}')


def classifier():
    """A function from uint8 (n, 16, 16, 1) to digits, and its accuracy on real ones it has not seen."""
    from sklearn.svm import SVC

    from sgm_jax.data.labelled import Labelled

    def flat(images: np.ndarray) -> np.ndarray:
        # As the model sees them, shrunk to the size that digits were scanned at.
        means = images.astype(np.float32).reshape(len(images), 8, 2, 8, 2).mean((2, 4))
        return means.reshape(len(images), -1) / 255.0

    def part(split: str) -> tuple[np.ndarray, np.ndarray]:
        source = Labelled(height=16, width=16, split=split)
        records = [source.record(index) for index in range(len(source))]
        images = np.stack([np.round((r['jpg'][..., 0] + 1) * 127.5) for r in records])
        return flat(images), np.array([r['cls'] for r in records])

    machine = SVC(gamma='scale', C=10).fit(*part('train'))
    return lambda images: machine.predict(flat(images[..., 0])), machine.score(*part('held_out'))


if __name__ == '__main__':
    main()
