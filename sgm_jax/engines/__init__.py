"""What is trained: a model, its loss, its samples and its pictures, built from a config."""

from collections.abc import Mapping

from sgm_jax.config import build as build_from
from sgm_jax.config import plain
from sgm_jax.engines.autoencoding import AutoencodingEngine
from sgm_jax.engines.diffusion import DiffusionEngine
from sgm_jax.engines.protocol import Engine

ENGINES = {'diffusion': DiffusionEngine.from_config, 'autoencoding': AutoencodingEngine.from_config}

__all__ = ['ENGINES', 'AutoencodingEngine', 'DiffusionEngine', 'Engine', 'build']


def build(config: Mapping, *, sampling: bool = False) -> Engine:
    """The engine that `config.model` names, with the defaults of `config.sample` for its samples.

    With `sampling` it is for samples alone: blocks of transformers that a training scans are compiled one by
    one, for a scan puts their weights together anew at every step.
    """
    model = plain(config['model'])
    if sampling and model.get('network', {}).get('scan'):
        model['network'] = {**model['network'], 'scan': False}
    return build_from(ENGINES, model, where='model', sample=config.get('sample', {}))
