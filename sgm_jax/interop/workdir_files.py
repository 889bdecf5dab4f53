"""Runs as seen from outside: a workdir's config, and the newest averaged weights in it."""

import json
import pathlib
from typing import Any

import jax
import ml_collections
from orbax.checkpoint import v1 as ocp

from sgm_jax.errors import UserError
from sgm_jax.interop import sgm

PyTree = Any
CHECKPOINTS, CONFIG = 'checkpoints', 'config.json'
# Parts of a checkpoint: the averaged weights, the trained ones, and what a run needs to go on.
EMA, PARAMS, PROGRESS = 'ema_params', 'params', 'progress'
LOSS = 'loss'
_AT_ONCE = 2**29


def is_workdir(path: str | pathlib.Path) -> bool:
    """Whether a path is a folder in which a run was started."""
    return (pathlib.Path(path) / CONFIG).is_file()


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config that a run was started with."""
    path = pathlib.Path(workdir) / CONFIG
    try:
        config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error})') from error
    if 'model' not in config:
        raise UserError(f'{path} is not that of a run; of a diffusers folder name the folder above')
    return config


def _tuples(node: Any) -> Any:
    # JSON has no tuples; configs have no lists.
    if isinstance(node, dict):
        return {key: _tuples(value) for key, value in node.items()}
    return tuple(map(_tuples, node)) if isinstance(node, list) else node


def latest_step(workdir: str | pathlib.Path) -> int | None:
    """The step of the newest complete checkpoint."""
    folder = pathlib.Path(workdir) / CHECKPOINTS
    # Orbax gives a checkpoint its plain number when it is complete.
    return max((int(p.name) for p in folder.glob('*') if p.name.isdigit()), default=None)


def weights_alone(workdir: str | pathlib.Path, step: int) -> bool:
    """Whether a checkpoint holds averaged weights and nothing that a run could go on from."""
    folder = pathlib.Path(workdir) / CHECKPOINTS / str(step)
    return (folder / EMA).is_dir() and not (folder / PROGRESS).is_dir()


def read_ema(workdir: str | pathlib.Path, wanted: PyTree, *, part: str = EMA) -> PyTree:
    """The averaged weights of a workdir's newest complete checkpoint.

    Args:
      workdir: the folder that train.py was given.
      wanted: the tree of shapes; where they have no shardings, arrays go to the first device.
      part: PARAMS for the trained weights in place of their averages.

    Raises:
      UserError: there is no complete checkpoint, or its names and shapes are others.
    """
    step = latest_step(workdir)
    if step is None:
        raise UserError(
            f'{workdir} has no complete checkpoint yet; train longer, or name another workdir'
        )
    folder = pathlib.Path(workdir).resolve() / CHECKPOINTS / str(step)
    if not (folder / part).is_dir() and (folder / EMA).is_dir():
        raise UserError(f'{folder} holds averaged weights alone; take those')
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # A loss may have learned something too (sgm: loss.logvar); it is no weight of the model.
    learned_by_loss = _metadata(folder, part).get(LOSS, {})
    whole = {LOSS: learned_by_loss, **wanted} if learned_by_loss else wanted
    check_fits(folder, whole, part)
    placed = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or first
    )
    try:
        found = ocp.load_checkpointables(folder, {part: jax.tree.map(placed, whole)})[part]
        return {name: found[name] for name in wanted}
    except (ValueError, OSError) as error:
        raise damaged(folder, error) from error


def write_weights(workdir: str | pathlib.Path, weights: PyTree) -> None:
    """Averaged weights as the checkpoint 0 of a workdir, for sampling and for runs to begin with.

    Raises:
      UserError: it cannot be written.
    """
    folder = pathlib.Path(workdir).resolve() / CHECKPOINTS / '0'
    # Nobody changes them while they are written, which Orbax would make copies for.
    lean = ocp.options.MemoryOptions(deepcopy_host_arrays=False, write_concurrent_bytes=_AT_ONCE)
    try:
        with ocp.Context(memory_options=lean):
            ocp.save_checkpointables(folder, {EMA: weights})
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f'{folder} could not be written ({reason}); free some space, or choose another place'
        ) from error


def check_fits(folder: pathlib.Path, wanted: PyTree, part: str = EMA) -> None:
    """Raises a UserError that lists what in a checkpoint's weights is missing, unexpected or mis-shaped."""
    found = _metadata(folder, part)
    try:
        sgm.check_names(_shapes(wanted), _shapes(found))
    except UserError as error:
        raise UserError(f'{folder}: {error}') from error


def _metadata(folder: pathlib.Path, part: str) -> PyTree:
    try:
        return ocp.metadata(folder, checkpointable_name=part).metadata
    except (ValueError, KeyError, OSError) as error:
        raise damaged(folder, error) from error


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    name = lambda path: '.'.join(str(getattr(key, 'key', key)) for key in path)
    return {name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def damaged(folder: pathlib.Path, error: Exception) -> UserError:
    """The error of a checkpoint that cannot be read although it is complete."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f'{folder} cannot be read ({reason}); remove that folder to go on from the checkpoint before it'
    )
