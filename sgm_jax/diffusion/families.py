"""Every family of choices by the key it has in a config, and the way from such a config to objects."""

from collections.abc import Mapping
from typing import Any

from sgm_jax.config import build, lookup, plain
from sgm_jax.diffusion.denoiser import DENOISERS
from sgm_jax.diffusion.discretization import DISCRETIZATIONS
from sgm_jax.diffusion.guiders import GUIDERS
from sgm_jax.diffusion.loss import LOSSES
from sgm_jax.diffusion.samplers import SAMPLERS
from sgm_jax.diffusion.scaling import SCALINGS
from sgm_jax.diffusion.sigma_sampling import SIGMA_SAMPLINGS
from sgm_jax.diffusion.weighting import WEIGHTINGS

FAMILIES = {
    'discretization': DISCRETIZATIONS,
    'scaling': SCALINGS,
    'denoiser': DENOISERS,
    'weighting': WEIGHTINGS,
    'sigma_sampling': SIGMA_SAMPLINGS,
    'loss': LOSSES,
    'guider': GUIDERS,
    'sampler': SAMPLERS,
}


def make(family: str, node: Mapping, *, where: str = '', **given: Any) -> Any:
    """The object that a config node describes, and first the objects that its own keys describe.

    `make('denoiser', {'name': 'discrete', 'scaling': {'name': 'eps'}})`.

    Args:
      family: a key of FAMILIES.
      node: `name`, and the keywords of what the name stands for.
      where: what errors call this node; the family, unless given.
      **given: keywords that the node does not choose (a guider's num_frames); names that the choice does
        not have are left out.

    Raises:
      UserError: an unknown name or key, here or below.
    """
    where = where or family
    table = lookup(FAMILIES, family, 'family')
    options = plain(node)
    parts = {
        key: make(key, value, where=f'{where}.{key}')
        for key, value in options.items()
        if key in FAMILIES and isinstance(value, Mapping)
    }
    return build(table, {**options, **parts}, where=where, **given)
