"""Latent diffusion for images, video and orbits in JAX.

`sgm_jax.load(path)` gives an engine that samples; everything else is imported from its own module.
Importing the package imports nothing else, so command lines answer at once.
"""

__version__ = '0.1.0'


def __getattr__(name: str):
    if name == 'load':
        from sgm_jax.sampling.load import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
