"""A run's folder: the config it was made by, its checkpoints, its logs.

config.json    the full config, as it was resolved at the newest start
starts.jsonl   when, by which command and with which code it was started
checkpoints/   one folder per kept step
logs/          TensorBoard's event files, and the history
pictures/      PNG and mp4, by split
compiled/      programs, where several hosts train (parallel/cache.py)
broken/        the state and batch of a step whose numbers were not finite
"""

import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections

from sgm_jax.config import plain
from sgm_jax.errors import UserError
from sgm_jax.interop import hub
from sgm_jax.interop.whole_files import whole
from sgm_jax.interop.workdir_files import CHECKPOINTS, CONFIG, latest_step
from sgm_jax.parallel import agreement
from sgm_jax.training.options import defaults

LOGS, PICTURES = 'logs', 'pictures'
SHARED = '--workdir must be one folder that all hosts share'
# What may differ when a run is taken up again: how long, how often, where the files and the devices are.
FREE = (
    'train.steps',
    *(
        f'train.{name}'
        for name in (
            'log_every',
            'image_every',
            'validate_every',
            'validate_examples',
            'validate_batch',
            'test_examples',
            'checkpoint_every',
            'checkpoint_minutes',
            'keep',
            'keep_every',
            'keep_best',
            'best',
            'data_threads',
            'data_ahead',
            'heartbeat_minutes',
            'wandb',
        )
    ),
    'pictures',
    # What is computed again changes no number.
    'model.network.remat',
    'model.network.use_checkpoint',
    'data.path',
    'data.cache',
    'data.cache_bytes',
    'model.checkpoint',
    'model.first_stage_checkpoint',
    'model.lpips_checkpoint',
    'model.lpips_linear',
    'mesh',
    'sample',
)
_SHOWN = 5


def open_workdir(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> pathlib.Path:
    """The folder of a run, made if it is new; its config.json is that of the newest start.

    Of several processes the first writes; the others go on when it has.

    Raises:
      UserError: it is another run's, or cannot be written; or processes have different configs, or
        different folders of one name.
    """
    agreement.check_same(
        'the config', json.dumps(_saved(config)), 'give the same flags on all hosts'
    )
    path = pathlib.Path(workdir).expanduser().resolve()
    try:
        for folder in (path, path / CHECKPOINTS, path / LOGS):
            folder.mkdir(parents=True, exist_ok=True)
        # Until there is something to go on from, the folder is free to change its mind.
        if (path / CONFIG).is_file() and latest_step(path) is not None:
            _check_same(path, config)
        if jax.process_index() == 0:
            with whole(path / CONFIG) as file:
                file.write((json.dumps(_saved(config), indent=2) + '\n').encode())
    except OSError as error:
        raise UserError(
            f'{path}: cannot be used as a workdir ({error.strerror or error}); choose another --workdir'
        ) from error
    agreement.wait_for_all('the workdir is open')
    _check_shared(path)
    return path


def _check_shared(path: pathlib.Path) -> None:
    """What the first process writes there, all others must see: parts of a checkpoint belong together."""
    if jax.process_count() == 1:
        return
    # A name that no host has looked for before: no network's file system remembers that it is not there.
    mark = path / f'.opened-{agreement.of_first(secrets.randbits(31))}'
    first = jax.process_index() == 0
    try:
        if first:
            mark.touch()
        agreement.wait_for_all('the workdir is marked')
        seen = 'as the first sees it' if mark.exists() else 'without what the first wrote there'
        agreement.check_same('the workdir', f'{seen}: {path}', SHARED)
    finally:
        if first:
            mark.unlink(missing_ok=True)


def _saved(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config with the paths of weights made absolute: sampling may start in another folder."""
    saved = json.loads(json.dumps(plain(config)))
    for key in ('checkpoint', 'first_stage_checkpoint', 'lpips_checkpoint', 'lpips_linear'):
        if saved['model'].get(key) and not hub.is_remote(saved['model'][key]):
            saved['model'][key] = str(pathlib.Path(saved['model'][key]).expanduser().resolve())
    return saved


def _check_same(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    try:
        before = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise UserError(
            f'{path / CONFIG} is damaged ({error}); repair it, or choose another --workdir'
        ) from error
    # What was added since the run began is as it was before.
    unsaid = dict(_leaves(json.loads(json.dumps(defaults()))))
    old, new = {**unsaid, **dict(_leaves(before))}, {**unsaid, **leaves(config)}
    # A mixture's sources move as a single one does.
    plainly = lambda key: re.sub(r'^data\.sources\.\d+\.', 'data.', key)
    is_free = lambda key: any(f'{plainly(key)}.'.startswith(f'{free}.') for free in FREE)
    changed = [
        f'{key} was {old.get(key, "unset")!r}, is {new.get(key, "unset")!r}'
        for key in sorted(old.keys() | new.keys())
        if not is_free(key) and old.get(key) != new.get(key)
    ]
    if changed:
        more = f', and {len(changed) - _SHOWN} more' if len(changed) > _SHOWN else ''
        raise UserError(
            f'{path} was made by another config: {"; ".join(changed[:_SHOWN])}{more}; '
            'choose another --workdir, or give the config it was made by'
        )


def leaves(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All of a config's values by dotted key."""
    return dict(_leaves(_saved(config)))


def _leaves(node: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists count by their index."""
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        yield prefix, node
        return
    for key, value in items:
        yield from _leaves(value, f'{prefix}.{key}' if prefix else str(key))
