"""The published weights of the Inception-v3 that FID is measured with, from a file of one's own."""

from flax import nnx

from sgm_jax.errors import UserError
from sgm_jax.interop import sgm, torch_files
from sgm_jax.interop.checkpoint_files import Safetensors
from sgm_jax.networks.inception import Inception
from sgm_jax.networks.layers import Keys

# What the features do not need: the classifiers, and counts.
_DROPPED = ('fc.', 'AuxLogits.')


def load_inception(path: str) -> Inception:
    """The network with a file's weights, as numpy arrays on the host.

    Args:
      path: .safetensors, or what torch.save wrote, such as pytorch-fid's
        pt_inception-2015-12-05-6726825d.pth; torchvision's names.

    Raises:
      UserError: the file is missing, is damaged, does not fit or holds code.
    """
    weights = Safetensors(path) if path.endswith('.safetensors') else torch_files.read(path)
    try:
        needed = {
            name: weights[name]
            for name in weights
            if not name.startswith(_DROPPED) and not name.endswith('num_batches_tracked')
        }
        module = nnx.eval_shape(lambda: Inception(rngs=Keys(0)))
        return sgm.load(module, needed, place=sgm.Entry.typed)
    except (UserError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: {error}') from error
