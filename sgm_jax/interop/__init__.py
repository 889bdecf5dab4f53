"""Other people's files: names and layouts of PyTorch checkpoints, in and out, bit for bit."""

from sgm_jax.interop.checkpoint_files import open_tensors
from sgm_jax.interop.diffusers_files import write as write_diffusers
from sgm_jax.interop.safetensors_files import write as write_sgm
from sgm_jax.interop.sgm import from_sgm, to_sgm
from sgm_jax.interop.sgm_config import load_sgm_config

__all__ = [
    'from_sgm',
    'load_sgm_config',
    'open_tensors',
    'to_sgm',
    'write_diffusers',
    'write_sgm',
]
