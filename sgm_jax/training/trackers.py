"""Services that keep the numbers and pictures of runs."""

import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole


class Tracker(Protocol):
    """Where numbers and pictures go besides the workdir."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 (h, w, 3)."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class WeightsAndBiases:
    """A run of Weights & Biases, named after the workdir; taking the workdir up again goes on with it.

    Raises:
      UserError: the wandb package is not installed, or refuses.
    """

    def __init__(self, project: str, workdir: pathlib.Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f'train.wandb is {project!r}, but wandb is not installed; pip install wandb'
            ) from error
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=project,
                id=_own_id(workdir),
                name=workdir.name,
                resume='allow',
                dir=str(workdir),
                config=dict(config),
            )
        except Exception as error:
            raise UserError(
                f'train.wandb is {project!r}, but Weights & Biases refuses ({error}); log in with '
                'wandb login, or set WANDB_MODE=offline'
            ) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _own_id(workdir: pathlib.Path) -> str:
    """The run's id, kept in its folder: another folder of the same name is another run."""
    path = workdir / 'wandb_id.txt'
    if not path.exists():
        # Before ids were kept, they were the folders' names.
        begun = (workdir / 'wandb').is_dir()
        with whole(path) as file:
            file.write((workdir.name if begun else uuid.uuid4().hex).encode())
    return path.read_text()
