"""Orbits: objects seen from around, with the cameras; what SV3D is trained on."""

import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sgm_jax.conditioning.cameras import Orbit, dynamic_orbit, relative, static_orbit
from sgm_jax.data.damage import Damage
from sgm_jax.data.files import DEMO
from sgm_jax.data.identity import digest
from sgm_jax.data.objects import draw_object, render
from sgm_jax.data.records import check_split
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import to_float
from sgm_jax.sampling.media import read_image

LOG = logging.getLogger(__name__)

CAMERAS = 'cameras.json'
# Of the demo's objects, whose cameras are drawn: around this height.
DEMO_ELEVATION = 45.0
# Objects tried for one record before the data are called broken.
ATTEMPTS = 20


class Orbits:
    """Views of objects in order around them; the last of a record is the one that is given.

    A folder has a folder for each object, with its views and a cameras.json (`read_cameras`). From an
    object's views some are drawn in training, and any may be the given one; otherwise they are those
    nearest to even steps. 'demo' stands for drawn objects (`sgm_jax.data.objects`) seen from dynamic orbits.
    """

    def __init__(
        self,
        *,
        path: str,
        num_frames: int,
        height: int,
        width: int,
        split: str = 'train',
        held_out_fraction: float = 0.1,
        random: bool = True,
        demo_objects: int = 2000,
        cache_bytes: int = 2**30,
        max_damaged: float = 0.01,
    ):
        """Lists the objects and reads their cameras; those that cannot be used are logged and counted.

        Args:
          path: a folder of objects, or 'demo'.
          num_frames: views of a record.
          height, width: of a record, pixels.
          split: 'train', or 'held_out' for the last of the objects.
          held_out_fraction: of the objects.
          random: False for the same views each time. Held-out records are always so.
          demo_objects: how many the demo has.
          cache_bytes: the most that is kept decoded.
          max_damaged: the share of damaged objects that ends the run; see `sgm_jax.data.damage`.

        Raises:
          UserError: nothing usable at `path`, or options that make no sense.
        """
        check_split(split)
        if min(num_frames, height, width) < 1:
            raise UserError('data: num_frames, height and width must be at least 1')
        if not 0 <= held_out_fraction < 1:
            raise UserError(
                f'data: held_out_fraction is {held_out_fraction}; give 0 or more, below 1'
            )
        self.path, self.split, self.num_frames = path, split, num_frames
        self.size, self.drawn = (height, width), random and split == 'train'
        if str(path) == DEMO:
            objects = range(demo_objects)
        else:
            objects = list_objects(path)
        kept = len(objects) - round(len(objects) * held_out_fraction)
        self.objects = objects[:kept] if split == 'train' else objects[kept:]
        if not self.objects:
            raise UserError(
                f'data: {path} has {len(objects)} objects, none for {split}; change held_out_fraction'
            )
        self.damage = Damage(len(self.objects), limit=max_damaged, what='object')
        self.skipped: dict[str, str] = {}
        if str(path) != DEMO:
            self._keep_usable()
        self._room = cache_bytes
        self._kept: dict[pathlib.Path, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`jpg` float32 (t, h, w, 3) in [-1, 1] on white; `polars_rad` and `azimuths_rad` float32 (t,).

        Should a view prove damaged, the next usable object stands in.

        Raises:
          UserError: too many are damaged, or `ATTEMPTS` in a row.
        """
        rng = rng if self.drawn else None
        if str(self.path) == DEMO:
            path = _demo_path(self.num_frames, rng)
            turn = 0.0 if rng is None else rng.uniform(0, 360)
            parts = draw_object((self.objects[index], 1))
            frames = on_white(render(parts, path.elevations, path.azimuths + turn, self.size))
        else:
            frames, path = self._read_or_next(index, rng)
        return {'jpg': to_float(frames), **path.entries()}

    def describe(self) -> str:
        """A few lines: what, how many, and what was skipped."""
        height, width = self.size
        lines = [
            f'orbits ({self.split}): {len(self)} objects at {self.path}, records of '
            f'{self.num_frames} views of {height}x{width}'
        ]
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f'  {len(self.skipped)} objects skipped; the first: {name}: {reason}')
        return '\n'.join([*lines, *self.damage.lines()])

    def identity(self) -> str:
        """Of the objects that are used and how many views each has (`sgm_jax.data.identity`)."""
        if str(self.path) == DEMO:
            return f'{len(self)} objects'
        return digest('objects', map(str, self.objects), np.array([len(v) for v in self.views]))

    def _keep_usable(self) -> None:
        """Reads the cameras; an object's split is by its place among all, whatever others are like."""
        views, damaged = {}, {}
        for folder in self.objects:
            try:
                found = read_cameras(folder)
            except UserError as error:
                damaged[str(folder)] = _below(folder, error)
                continue
            if len(found) < self.num_frames:
                reason = f'{len(found)} views, and data.num_frames is {self.num_frames}'
                self.skipped[str(folder)] = reason
                LOG.warning('skipping an object: %s: %s', folder, reason)
            else:
                views[folder] = found
        self.damage.update(damaged)
        self.objects, self.views = list(views), list(views.values())
        if not views:
            name, reason = next(iter({**self.skipped, **damaged}.items()))
            raise UserError(
                f'data: none of the objects at {self.path} can be used for {self.split}; the first: '
                f'{name}: {reason}'
            )

    def _read_or_next(
        self, index: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, Orbit]:
        for attempt in range(ATTEMPTS):
            place = (index + attempt) % len(self)
            views = choose(self.views[place], self.num_frames, rng)
            try:
                return np.stack([self._read(view['path']) for view in views]), path_of(views)
            except UserError as error:
                folder = self.objects[place]
                self.damage.add(str(folder), _below(folder, error))
        raise UserError(
            f'data: {ATTEMPTS} objects in a row could not be read, the last {self.objects[place]}; '
            'remove the damaged ones (the log names them)'
        )

    def _read(self, path: pathlib.Path) -> np.ndarray:
        if path not in self._kept:
            image = read_image(path, self.size)
            if self._room < image.nbytes:
                return image
            self._room -= image.nbytes
            self._kept[path] = image
        return self._kept[path]


def _below(folder: pathlib.Path, error: UserError) -> str:
    return str(error).removeprefix(f'{folder}/')


def _demo_path(num_frames: int, rng: np.random.Generator | None) -> Orbit:
    if rng is None:
        return static_orbit(num_frames, DEMO_ELEVATION)
    # Far from even steps, so that the angle says what the place in the clip does not.
    return dynamic_orbit(
        num_frames, rng, elevation=DEMO_ELEVATION + rng.uniform(-8, 8), azimuth_noise=40.0
    )


def on_white(views: np.ndarray) -> np.ndarray:
    """uint8 RGBA (..., 4) over white, uint8 (..., 3)."""
    alpha = views[..., 3:] / np.float32(255)
    return (views[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def list_objects(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The folders with a cameras.json in the folder `path`, sorted; or `path` itself, if it has one.

    Raises:
      UserError: there are none.
    """
    place = pathlib.Path(path).expanduser()
    if not str(path):
        raise UserError(
            f'data.path is empty; give --config.data.path=FOLDER with your objects, or {DEMO!r} for '
            'drawn ones'
        )
    if (place / CAMERAS).is_file():
        return [place]
    found = sorted(file.parent for file in place.glob(f'*/{CAMERAS}')) if place.is_dir() else []
    if not found:
        raise UserError(
            f'{path}: no objects there; an object is a folder with its views and a {CAMERAS}'
        )
    return found


def read_cameras(folder: pathlib.Path) -> tuple[dict, ...]:
    """The views of an object, sorted by azimuth: path, and elevation and azimuth in degrees.

    cameras.json is {"views": [{"file": "000.png", "elevation": 10.0, "azimuth": 0.0}, ...]}.

    Raises:
      UserError: the file is damaged, or a number in it is missing or out of range.
    """
    file = folder / CAMERAS
    try:
        listed = json.loads(file.read_text(encoding='utf-8'))['views']
        views = [_view(folder, view) for view in listed]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f'no {error}' if isinstance(error, KeyError) else ' '.join(str(error).split())
        raise UserError(
            f'{file}: not the cameras of an object ({reason}); it is to hold '
            '{"views": [{"file": ..., "elevation": ..., "azimuth": ...}, ...]}'
        ) from error
    for view in views:
        if not -90 <= view['elevation'] <= 90:
            raise UserError(
                f'{file}: the elevation of {view["path"].name} is {view["elevation"]:g}; '
                'give degrees from -90 to 90'
            )
    return tuple(sorted(views, key=lambda view: view['azimuth']))


def _view(folder: pathlib.Path, view: Mapping) -> dict:
    return {
        'path': folder / view['file'],
        'elevation': float(view['elevation']),
        'azimuth': float(view['azimuth']) % 360.0,
    }


def choose(
    views: Sequence[dict], num_frames: int, rng: np.random.Generator | None
) -> tuple[dict, ...]:
    """`num_frames` of an object's views, once around it; the last is the given one.

    Drawn without replacement; without `rng` the first view is given, and the others divide the list evenly.
    """
    if rng is None:
        picked = [round(i * len(views) / num_frames) for i in range(1, num_frames)] + [0]
        return tuple(views[i] for i in picked)
    given = int(rng.integers(len(views)))
    others = 1 + np.sort(rng.permutation(len(views) - 1)[: num_frames - 1])
    return tuple(views[(given + i) % len(views)] for i in (*others, 0))


def path_of(views: Sequence[dict]) -> Orbit:
    """The cameras of views, azimuths from the last one on."""
    column = functools.partial(lambda key: np.array([view[key] for view in views]))
    return Orbit(elevations=column('elevation'), azimuths=relative(column('azimuth')))
