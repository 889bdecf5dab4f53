"""Published checkpoints as files: what is in them, and modules filled from them."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
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


def read(
    path: str,
    module: nnx.Module,
    *,
    prefix: str = '',
    only: Callable[[tuple], bool] = lambda path: True,
) -> nnx.Module:
    """An abstract module, filled with the weights of a file as `sgm.load` does, on the host.

    Args:
      path: a .safetensors file with sgm's names.
      module: of nnx.eval_shape.
      prefix: what the names of the module's weights begin with in the file.
      only: which parameters, by path, are read; the others stay abstract.

    Raises:
      UserError: the file is missing or damaged, or lists what does not fit.
    """
    return fill(module, Safetensors(path), path, prefix=prefix, only=only)


def fill(module: nnx.Module, tensors: Mapping[str, Any], path: str, **options: Any) -> nnx.Module:
    """`sgm.load` on the host, of tensors that come from `path`: its errors name that."""
    try:
        return sgm.load(module, tensors, place=np.asarray, **options)
    except SafetensorError as error:
        raise UserError(f'{path} is damaged ({error}); download it again') from error
    except UserError as error:
        raise error if path in str(error) else UserError(f'{path}: {error}') from error


def write_model(path: str, module: nnx.Module) -> None:
    """A module's weights as an sgm .safetensors file, written whole or not at all."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part')
    try:
        save_file({k: np.asarray(x, order='C') for k, x in sgm.to_sgm(module).items()}, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
