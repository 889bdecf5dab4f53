"""Which config a file of weights belongs to, told from its tensors."""

import pathlib

import ml_collections

from sgm_jax.config import load_config
from sgm_jax.errors import UserError
from sgm_jax.interop.checkpoint_files import open_tensors
from sgm_jax.interop.families import family_of


def config_of(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a published checkpoint.

    Stable Video Diffusion's checkpoints (svd, svd_xt, svd_xt_1_1) have the same tensors, and this gives the
    one of 14 frames; so have SDXL and SDXL-Turbo, and this gives SDXL.

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
    config = file.partition(':')[0]
    if not (folder / config).is_file():
        raise UserError(
            f'{path} looks like {name}, but configs/{config} is not beside the installed package; give '
            'its path as config=, or --config'
        )
    return load_config(str(folder / file))
