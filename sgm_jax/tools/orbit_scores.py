"""How near an orbit model's views are to the true ones: PSNR, SSIM and LPIPS, view by view."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sgm_jax.data.orbits import Orbits
from sgm_jax.engines.structure import to_uint8
from sgm_jax.engines.tasks import CAMERAS, ImageToOrbit
from sgm_jax.errors import UserError
from sgm_jax.sampling import media
from sgm_jax.sampling.load import LoadedModel, load
from sgm_jax.sampling.orbits import told
from sgm_jax.sampling.videos import draw

# Objects that are sampled at once, and those that are shown.
_BATCH, _SHOWN = 4, 4
Compare = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def report(
    checkpoint: str,
    orbits: str,
    *,
    config: Any = None,
    count: int,
    steps: int | None = None,
    output: str | None = None,
    compare: Compare,
) -> Iterator[str]:
    """Lines of a table: each novel view, all of them, and what they are beside.

    The last view of an orbit is the given one, and left out. Copying it is the baseline. For models that are
    told cameras the control is told the same azimuths in another order, and compared with the same truth:
    what the two differ by is what following the cameras is worth.

    Raises:
      UserError: the checkpoint is not an orbit model's, or the folder does not fit it.
    """
    model = load(checkpoint, config)
    task = getattr(model.engine, 'task', None)
    if not isinstance(task, ImageToOrbit):
        raise UserError(f'{checkpoint} is not an orbit model, which --orbits is for')
    settings = model.engine.sampling
    source = Orbits(
        path=orbits,
        num_frames=task.num_frames,
        height=settings.height,
        width=settings.width,
        held_out_fraction=0.0,
        random=False,
        # Each object is scored once: none stands in for another.
        max_damaged=0.0,
    )
    records = [source.record(i) for i in range(min(count, len(source)))]
    true = np.stack([to_uint8(record['jpg']) for record in records])
    paths = [np.stack([record[key] for key in CAMERAS]) for record in records]
    views = _sampled(model, true, paths, steps)
    copied = np.repeat(true[:, -1:], true.shape[1], 1)
    size = f'{settings.height}x{settings.width}'
    yield f'{len(true)} objects at {orbits}, {task.num_frames - 1} novel views of {size} of each'
    angles = np.rad2deg([path[1] for path in paths]).mean(0)
    for view in range(task.num_frames - 1):
        scores = compare(true[:, view], views[:, view])
        yield _row(f'view {view + 1} at {angles[view]:.0f}', scores)
    flat = lambda x: x[:, :-1].reshape(-1, *x.shape[2:])
    yield _row('all views', compare(flat(true), flat(views)))
    yield _row('input view copied', compare(flat(true), flat(copied)))
    rows = [true, views]
    if set(CAMERAS) <= model.engine.structure.shape.conditioner.reads:
        shuffled = _sampled(model, true, [_shuffled(p, i) for i, p in enumerate(paths)], steps)
        yield _row('azimuths shuffled', compare(flat(true), flat(shuffled)))
        rows.append(shuffled)
    if output:
        shown = [media.strip(x[i]) for i in range(min(_SHOWN, len(true))) for x in rows]
        media.write_image(pathlib.Path(output), np.concatenate(shown))
        yield f'true, sampled{", shuffled" if len(rows) > 2 else ""}, object after object: {output}'


def _row(name: str, scores: dict[str, float]) -> str:
    return f'{name:18}' + '  '.join(f'{key} {value:7.3f}' for key, value in scores.items())


def _shuffled(path: np.ndarray, seed: int) -> np.ndarray:
    """The novel views' azimuths in an order in which none keeps its place."""
    count = path.shape[1] - 1
    order = np.random.default_rng(seed).permutation(count)
    moved = path.copy()
    moved[1, order] = path[1, np.roll(order, 1)]
    return moved


def _sampled(
    model: LoadedModel, true: np.ndarray, paths: list[np.ndarray], steps: int | None
) -> np.ndarray:
    """uint8 (n, t, h, w, 3), of the true last views; `paths` are (2, t) radians: polars and azimuths."""
    found = []
    for start in range(0, len(true), _BATCH):
        part = slice(start, start + _BATCH)
        given = true[part, -1]
        settings = model.engine.sampling
        views = {
            key: np.concatenate([path[row] for path in paths[part]])
            for row, key in enumerate(CAMERAS)
        }
        batch, keys = told(given, views, cond_aug=settings.cond_aug, seed=start)
        sampling = dataclasses.replace(settings, steps=steps or settings.steps)
        views = draw(model, model.engine, batch, keys, size=true.shape[2:4], sampling=sampling)
        views[:, -1] = given
        found.append(views)
    return np.concatenate(found)
