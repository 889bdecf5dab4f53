"""Which config a file of weights belongs to, told from its tensors."""

import logging
import pathlib

import ml_collections

from sgm_jax.config import load_config
from sgm_jax.errors import UserError
from sgm_jax.interop.checkpoint_files import open_tensors
from sgm_jax.interop.families import ALIKE, family_of
from sgm_jax.interop.tensors import Tensors

LOG = logging.getLogger(__name__)
_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


def config_of(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a published checkpoint.

    Where others have the same tensors, as Stable Video Diffusion's svd, svd_xt and svd_xt_1_1, SDXL and
    SDXL-Turbo, and SD 2's of 512 and 768, it gives that of the first, and the log says so.

    Raises:
      UserError: the file is missing or damaged, or holds no model that has a config here.
    """
    tensors = open_tensors(path)
    name, file = family_of(tensors, tensors.shape)
    if file is None:
        raise UserError(
            f'{path} looks like {name}, which has no config here; give config=, or --config FILE.py'
        )
    if not _beside(file):
        raise UserError(
            f'{path} looks like {name}, but configs/{file.partition(":")[0]} is not beside the installed '
            'package; give its path as config=, or --config'
        )
    return _loaded(file, path)


def known_config(tensors: Tensors) -> ml_collections.ConfigDict | None:
    """The config that `config_of` gives for tensors that are open already; None where it has none."""
    file = family_of(tensors, tensors.shape).config
    return _loaded(file, tensors.path) if file is not None and _beside(file) else None


def _beside(file: str) -> bool:
    return (_CONFIGS / file.partition(':')[0]).is_file()


def _loaded(file: str, path: str | pathlib.Path) -> ml_collections.ConfigDict:
    if file in ALIKE:
        taken, other, config = ALIKE[file]
        LOG.info(
            '%s is taken for %s; for %s, whose tensors are the same, give --config configs/%s',
            path,
            taken,
            other,
            config,
        )
    return load_config(str(_CONFIGS / file))
