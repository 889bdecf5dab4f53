"""The smallest models of pictures that are still those of their configs: shared by the tests of sampling."""

import functools

import jax
import jax.numpy as jnp
import ml_collections

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.sampling.load import LoadedModel

SIZE, WIDTH = 8, 8
CLIP = {
    'vocab_size': 49408,
    'hidden_size': WIDTH,
    'intermediate_size': WIDTH,
    'num_hidden_layers': 1,
    'num_attention_heads': 1,
}
OPEN_CLIP = {
    'embed_dim': WIDTH,
    'text_cfg': {
        'context_length': 77,
        'vocab_size': 49408,
        'width': WIDTH,
        'heads': 1,
        'layers': 1,
    },
}
ARCHITECTURES = {'clip_text': CLIP, 'open_clip_text': OPEN_CLIP}


def config(name: str, **train) -> ml_collections.ConfigDict:
    """The tiny variant of a text-to-image config, on 8x8 pixels; `train` overrides `config.train`."""
    config = load_config(f'configs/{name}.py:tiny')
    nodes = []
    for node in config.model.conditioner:
        node = dict(node)
        if node['name'] in ARCHITECTURES:
            node['arch'] = ARCHITECTURES[node['name']]
            if 'layer_idx' in node:
                node['layer_idx'] = 0
        if node['name'] == 'concat_timestep':
            node['outdim'] = 4
        nodes.append(node)
    config.model.conditioner = tuple(nodes)
    texts = sum(node['name'] in ARCHITECTURES for node in nodes)
    sizes = sum(
        1 if node['input_key'] == 'aesthetic_score' else 2
        for node in nodes
        if node['name'] == 'concat_timestep'
    )
    config.model.network.update(
        channel_mult=(1, 1), attention_resolutions=(2,), context_dim=WIDTH * texts
    )
    if sizes:
        config.model.network.adm_in_channels = WIDTH + 4 * sizes
    config.data.update(height=SIZE, width=SIZE, repeat=2)
    config.sample.update(height=SIZE, width=SIZE, steps=2)
    if name == 'sdxl_turbo':
        config.sample.steps = 1
    config.schedule = {'name': 'constant'}
    config.train.update(
        batch_size=2, steps=2, log_every=1, image_every=0, checkpoint_every=2, **train
    )
    return config


@functools.cache
def model(name: str) -> LoadedModel:
    """A model with weights that do something: fresh ones end in zeros."""
    engine = build(config(name))
    params = jax.jit(engine.init)(jax.random.key(0))
    wave = lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)
    return LoadedModel(engine=engine, params=jax.tree.map(wave, params), frozen={})
