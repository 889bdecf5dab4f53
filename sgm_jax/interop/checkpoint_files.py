"""Published checkpoints as files: what is in them, and modules filled from them."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sgm_jax.errors import UserError
from sgm_jax.interop import sgm

PyTree = Any

# What training leaves in a checkpoint besides the model's own weights.
_NOT_WEIGHTS = ('model_ema.', 'loss.', 'denoiser.', 'betas', 'alphas_cumprod', 'sqrt_')


class Safetensors(Mapping):
    """The tensors of a .safetensors file by name, read one at a time as they are asked for."""

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        if not pathlib.Path(path).is_file():
            raise UserError(f'there is no checkpoint file {self.path}')
        try:
            self._file = safe_open(self.path, framework='flax')
        except (SafetensorError, OSError) as error:
            raise UserError(
                f'{self.path} is not a whole .safetensors file ({error}); download it again'
            ) from error
        self._names = [k for k in self._file.keys() if not k.startswith(_NOT_WEIGHTS)]  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Any:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_model(path: str, module: nnx.Module) -> nnx.Module:
    """An abstract module, filled with all of a file's weights.

    Raises:
      UserError: the file is missing or damaged, or lists what does not fit.
    """
    return _filled(path, module, '')


def read_part(path: str, module: nnx.Module, prefix: str) -> nnx.Module:
    """An abstract module, filled with those weights of a file whose names begin with `prefix`."""
    return _filled(path, module, prefix)


def _filled(path: str, module: nnx.Module, prefix: str) -> nnx.Module:
    try:
        return sgm.load(module, Safetensors(path), prefix=prefix)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def write_model(path: str, module: nnx.Module) -> None:
    """A module's weights as an sgm .safetensors file, written whole or not at all."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part')
    try:
        save_file({k: np.ascontiguousarray(x) for k, x in sgm.to_sgm(module).items()}, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
