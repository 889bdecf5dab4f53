"""What is trained: a model, its loss, its samples and its pictures, built from a config."""

from collections.abc import Mapping

from sgm_jax.config import build as build_from
from sgm_jax.engines.autoencoding import AutoencodingEngine
from sgm_jax.engines.diffusion import DiffusionEngine
from sgm_jax.engines.protocol import Engine

ENGINES = {'diffusion': DiffusionEngine.from_config, 'autoencoding': AutoencodingEngine.from_config}

__all__ = ['ENGINES', 'AutoencodingEngine', 'DiffusionEngine', 'Engine', 'build']


def build(config: Mapping) -> Engine:
    """The engine that `config.model` names, with the defaults of `config.sample` for its samples."""
    return build_from(ENGINES, config['model'], where='model', sample=config.get('sample', {}))
