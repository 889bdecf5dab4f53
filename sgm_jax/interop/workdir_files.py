"""Checkpoints of training runs as seen from outside a run: a workdir's newest averaged weights."""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from sgm_jax.errors import UserError

PyTree = Any
CHECKPOINTS = 'checkpoints'
EMA = 'ema_params'


def is_workdir(path: str | pathlib.Path) -> bool:
    """Whether a path is a folder in which a run was started."""
    return (pathlib.Path(path) / 'config.json').is_file()


def read_ema(workdir: str | pathlib.Path, abstract: PyTree) -> PyTree:
    """The averaged weights of a workdir's newest complete checkpoint.

    Args:
      workdir: the folder that train.py was given.
      abstract: the tree of shapes, with shardings or without.

    Raises:
      UserError: there is no complete checkpoint, or its names and shapes are others.
    """
    folder = pathlib.Path(workdir).resolve() / CHECKPOINTS
    steps = (
        sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit()) if folder.is_dir() else []
    )
    if not steps:
        raise UserError(
            f'{workdir} has no complete checkpoint yet; train longer, or name another workdir'
        )
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or place
        ),
        abstract,
    )
    try:
        return ocp.load_checkpointables(folder / str(steps[-1]), {EMA: wanted})[EMA]
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f'the checkpoint {folder / str(steps[-1])} does not fit the model of this config ({first})'
        ) from error
