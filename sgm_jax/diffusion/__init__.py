"""Diffusion without parameters: noise levels, denoisers, losses, guidance and samplers."""

from sgm_jax.diffusion.denoiser import Denoiser, DiscreteDenoiser
from sgm_jax.diffusion.drivers import sample, sample_scan
from sgm_jax.diffusion.families import FAMILIES, make
from sgm_jax.diffusion.guiders import guide
from sgm_jax.diffusion.loss import StandardDiffusionLoss

__all__ = [
    'FAMILIES',
    'Denoiser',
    'DiscreteDenoiser',
    'StandardDiffusionLoss',
    'guide',
    'make',
    'sample',
    'sample_scan',
]
