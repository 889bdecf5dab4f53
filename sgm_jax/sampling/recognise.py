"""Which config a file of weights belongs to, told from its tensors."""

import pathlib
from collections.abc import Callable, Iterable

import ml_collections

from sgm_jax.config import load_config
from sgm_jax.errors import UserError
from sgm_jax.interop.checkpoint_files import open_tensors

NETWORK = 'model.diffusion_model.'
# A published checkpoint by its family: (time in the network, width of the vector y), and the config it has
# here. None: known by sight, without a config yet.
_VECTOR = NETWORK + 'label_emb.0.0.weight'
_TIME = NETWORK + 'input_blocks.1.0.time_stack.in_layers.0.weight'
FAMILIES = {
    (True, 768): ('Stable Video Diffusion', 'svd.py'),
    (True, 256): ('SV3D_u', None),
    (True, 1280): ('SV3D_p', None),
    (False, 2816): ('SDXL base', None),
    (False, 2560): ('SDXL refiner', None),
}


def config_of(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a published checkpoint.

    Stable Video Diffusion's two checkpoints have the same tensors; this gives the one of 14 frames.

    Raises:
      UserError: the file is missing or damaged, or holds no model that has a config here.
    """
    tensors = open_tensors(path)
    name, file = family_of(tensors, tensors.shape)
    if file is None:
        raise UserError(
            f'{path} looks like {name}, which has no config here; give config=, or --config FILE.py'
        )
    folder = pathlib.Path(__file__).resolve().parents[2] / 'configs'
    if not (folder / file).is_file():
        raise UserError(
            f'{path} looks like {name}, but configs/{file} is not beside the installed package; give '
            'its path as config=, or --config'
        )
    return load_config(str(folder / file))


def family_of(
    names: Iterable[str], shape: Callable[[str], tuple[int, ...]]
) -> tuple[str, str | None]:
    """(what the tensors look like, its config's file) by their names and shapes."""
    names = set(names)
    if not any(name.startswith(NETWORK) for name in names):
        some = ', '.join(sorted(names)[:3])
        return f'no diffusion checkpoint of sgm (its tensors: {some}, ...)', None
    width = shape(_VECTOR)[1] if _VECTOR in names else None
    return FAMILIES.get((_TIME in names, width), ('an unknown network', None))
