"""Published checkpoints as files: what is in them, and modules filled from them."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from sgm_jax.errors import UserError
from sgm_jax.interop import diffusers_files, hub, safetensors_files, sgm, torch_files
from sgm_jax.interop.tensors import Lazy, Tensors

PyTree = Any

TORCH = ('.ckpt', '.pt', '.pth', '.bin')
_KINDS = '.safetensors, .ckpt or .pt file'
_EMA = 'model_ema.'
# What training leaves in a checkpoint besides the model's own weights: averages, losses, and the noise
# schedules that Latent Diffusion kept there.
_NOT_WEIGHTS = (
    _EMA,
    'loss.',
    'denoiser.',
    'betas',
    'alphas_cumprod',
    'sqrt_',
    'log_one_minus_alphas',
    'posterior_',
    'logvar',
    'lvlb_weights',
    'scale_factor',
)
# Counting numbers and triangles of minus infinity, which any code can make again.
_CONSTANTS = ('position_ids', 'attn_mask')


class Safetensors(Tensors):
    """The tensors of a .safetensors file by its own names, without what training leaves beside weights."""

    def __init__(self, path: str | pathlib.Path):
        super().__init__(_weights(safetensors_files.read(path).lazies), str(path))


def open_tensors(path: str | pathlib.Path, *, ema: bool = False) -> Tensors:
    """The weights of a published model under sgm's names, each read when it is asked for.

    Args:
      path: a .safetensors file, a .ckpt or .pt file (what torch.save wrote), or hf://org/repo/file for one
        of these on the Hugging Face hub; or a folder of diffusers, here or there (hf://org/repo).
      ema: take the averaged weights (sgm's LitEma, `model_ema.`) in place of those that were trained.

    Raises:
      UserError: nothing is there, it is damaged, of an unknown kind, or holds code; or it has no averages.
    """
    path = hub.local(path)
    if path.is_dir():
        if ema:
            raise UserError(f'{path} is a folder, which has one set of weights; leave ema out')
        if not diffusers_files.is_folder(path):
            raise UserError(
                f'{path} is a folder without {diffusers_files.INDEX}, no diffusers folder'
            )
        return diffusers_files.read(path)
    if path.suffix == '.safetensors':
        found = safetensors_files.read(path).lazies
    elif path.suffix in TORCH:
        found = _state_dict(path)
    elif not path.exists():
        raise UserError(f'there is no checkpoint file {path}')
    else:
        raise UserError(
            f'{path} is no file of weights that is known here; give a {_KINDS}, or a diffusers folder'
        )
    found = {_sgm_name(name): lazy for name, lazy in found.items()}
    return Tensors(_averaged(found, path) if ema else _weights(found), str(path))


def is_checkpoint(path: str | pathlib.Path) -> bool:
    """Whether `open_tensors` is to read a path, by its looks."""
    suffixes = ('.safetensors', *TORCH)
    return (
        hub.is_remote(path)
        or pathlib.Path(path).suffix in suffixes
        or diffusers_files.is_folder(path)
    )


def _state_dict(path: pathlib.Path) -> dict[str, Lazy]:
    tree = torch_files.scan(path)
    nested = tree.get('state_dict') if isinstance(tree, dict) else None
    tree = nested if isinstance(nested, dict) else tree
    tensors = tree.items() if isinstance(tree, dict) else ()
    found = {name: x for name, x in tensors if isinstance(name, str) and isinstance(x, Lazy)}
    if not found:
        raise UserError(f'{path} holds no state dict, tensors by name')
    return found


def _sgm_name(name: str) -> str:
    # Before sgm there was one text encoder, which was called the conditioning stage.
    old = 'cond_stage_model.'
    return f'conditioner.embedders.0.{name.removeprefix(old)}' if name.startswith(old) else name


def _weights(found: Mapping[str, Lazy]) -> dict[str, Lazy]:
    is_weight = lambda name: not name.startswith(_NOT_WEIGHTS) and not name.endswith(_CONSTANTS)
    return {name: lazy for name, lazy in found.items() if is_weight(name)}


def _averaged(found: Mapping[str, Lazy], path: pathlib.Path) -> dict[str, Lazy]:
    """The weights, with the averages of sgm's LitEma in their places: it leaves the dots out of names."""
    averages = {k.removeprefix(_EMA): x for k, x in found.items() if k.startswith(_EMA)}
    averages = {k: x for k, x in averages.items() if k not in ('decay', 'num_updates')}
    if not averages:
        raise UserError(
            f'{path} has no averaged weights (model_ema.); take those it has, without ema'
        )
    weights, placed = _weights(found), set()
    for name, lazy in weights.items():
        # Of a diffusion model it averages `model`, of an autoencoder all.
        key = name.removeprefix('model.').replace('.', '')
        if key in averages and averages[key].shape == lazy.shape and key not in placed:
            weights[name] = averages[key]
            placed.add(key)
    lost = sorted(averages.keys() - placed)
    if lost:
        raise UserError(
            f'{path}: {len(lost)} averaged weights have no place among the others, such as '
            f'{_EMA}{lost[0]}; take those that were trained, without ema'
        )
    return weights


def read(
    path: str,
    module: nnx.Module,
    *,
    prefix: str = '',
    **options: Any,
) -> nnx.Module:
    """An abstract module, filled with the weights of a file as `sgm.load` does, on the host.

    Args:
      path: a checkpoint, as `open_tensors` takes it.
      module: of nnx.eval_shape.
      prefix: what the names of the module's weights begin with in the file.
      **options: `sgm.load`'s only (which parameters are read) and place.

    Raises:
      UserError: the file is missing or damaged, or lists what does not fit.
    """
    return fill(module, open_tensors(path), path, prefix=prefix, **options)


def fill(module: nnx.Module, tensors: Mapping[str, Any], path: str, **options: Any) -> nnx.Module:
    """`sgm.load`, on the host unless `place` says otherwise, of `path`'s tensors: its errors name that."""
    options = {'place': sgm.Entry.typed, **options}
    try:
        return sgm.load(module, tensors, **options)
    except UserError as error:
        raise error if path in str(error) else UserError(f'{path}: {error}') from error


def write_model(path: str, module: nnx.Module) -> None:
    """A module's weights as an sgm .safetensors file, written whole or not at all."""
    safetensors_files.write(path, sgm.to_sgm(module))
