"""What the containers of a store's videos say, kept in the cache folder."""

import numpy as np

from sgm_jax.data import clips, places
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.facts import facts
from sgm_jax.data.stores import Store

# Far away, most of a look is waiting.
_THREADS, _REMOTE_THREADS = 4, 32


def video_infos(
    store: Store, path: str
) -> tuple[dict[int, clips.VideoInfo], dict[int, DamagedError]]:
    """The usable videos by their number in the store, and what is wrong with the others.

    Args:
      store: the videos.
      path: where it is; the cache is kept by it. Videos that changed since are looked at again, and so are
        those that could not be used.
    """

    def look(index: int) -> tuple[float, ...] | DamagedError:
        try:
            info = clips.read_info(store.name(index), bounds(store, index))
        except clips.UnreadableVideoError as error:
            return error
        return info.width, info.height, info.fps, info.duration, info.start

    threads = _REMOTE_THREADS if places.is_remote(path) else _THREADS
    # Whole numbers up to 2^53 stay what they are in float64.
    options = dict(columns=5, dtype=np.float64, threads=threads, worth_keeping=32)
    # Under 'videos' earlier versions kept rates that headers had guessed.
    rows, wrong = facts('video_infos', store, path, look, **options)
    infos = {}
    for index, (width, height, fps, duration, start) in enumerate(rows.tolist()):
        if index not in wrong:
            infos[index] = clips.VideoInfo(
                path=store.name(index),
                width=int(width),
                height=int(height),
                fps=fps,
                duration=duration,
                start=int(start),
                part=bounds(store, index),
            )
    return infos, wrong


def bounds(store: Store, index: int) -> places.Part | None:
    """Where a video's bytes are, as `clips.read_info` wants it: None for a whole file on this machine."""
    part = store.part(index)
    return None if part.size is None else part
