"""First stages from configs: autoencoders between pixels and latents."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import nnx

from sgm_jax.config import build, call, check_keys, lookup, plain
from sgm_jax.errors import UserError
from sgm_jax.networks.attention import ATTENTION
from sgm_jax.networks.autoencoder import Autoencoder, Decoder, Encoder
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.quantizers import EMAVectorQuantizer, GumbelQuantizer, VectorQuantizer
from sgm_jax.networks.regularizers import DiagonalGaussianRegularizer, IdentityRegularizer
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.platforms import auto_dtype

DTYPES = ('float32', 'bfloat16', 'float16')


def build_first_stage(node: Mapping, keys: Keys) -> Autoencoder | None:
    """'none', 'autoencoder_kl' (embed_dim and ddconfig) or 'autoencoder' (encoder, decoder, regularizer)."""
    return build(FIRST_STAGES, node, where='model.first_stage', rngs=keys)


def typed(node: Mapping) -> dict:
    """A dtype by name becomes one; 'auto' is bfloat16, but float32 on CPUs, which have no use for it."""
    node = plain(node)
    if node.get('attention', 'auto') != 'auto':
        lookup(ATTENTION, node['attention'], 'attention')
    if 'dtype' not in node:
        return node
    name = node['dtype']
    if name == 'auto':
        name = auto_dtype()
    if name not in DTYPES:
        raise UserError(f'unknown dtype {name!r}; choose one of: auto, {", ".join(DTYPES)}')
    return {**node, 'dtype': jnp.dtype(name)}


def _autoencoder_kl(*, embed_dim: int, ddconfig: Mapping, rngs: Keys) -> Autoencoder:
    where = 'autoencoder_kl.ddconfig'
    return Autoencoder(
        call(Encoder, typed(ddconfig), where=where, rngs=rngs),
        call(Decoder, typed(ddconfig), where=where, rngs=rngs),
        embed_dim=embed_dim,
        z_channels=ddconfig['z_channels'],
        rngs=rngs,
    )


def _autoencoder(
    *,
    encoder: Mapping | None,
    decoder: Mapping,
    regularizer: Mapping | None = None,
    embed_dim: int | None = None,
    rngs: Keys,
) -> Autoencoder:
    return Autoencoder(
        encoder and call(Encoder, typed(encoder), where='first_stage.encoder', rngs=rngs),
        _decoder(decoder, rngs),
        embed_dim=embed_dim,
        z_channels=decoder['z_channels'],
        double_z=(encoder or decoder).get('double_z', True),
        rngs=rngs,
        regularization=regularizer
        and build(REGULARIZERS, regularizer, where='first_stage.regularizer', rngs=rngs),
    )


def _decoder(node: Mapping, keys: Keys) -> nnx.Module:
    node, where = typed(node), 'first_stage.decoder'
    name = node.pop('name', 'decoder')
    if lookup(DECODERS, name, where) is Decoder:
        return call(Decoder, node, where=where, rngs=keys)
    # The temporal decoder hands the image decoder's keywords on.
    own = call_keys(VideoDecoder) | call_keys(Decoder)
    check_keys(node, own, where=where)
    return VideoDecoder(**node, rngs=keys)


def call_keys(module: Callable) -> set[str]:
    """The keywords of a module's constructor."""
    return set(module.__init__.__kwdefaults__ or ()) | set(module.__init__.__annotations__) - {
        'return',
        'rngs',
    }


REGULARIZERS = {
    'diagonal_gaussian': DiagonalGaussianRegularizer,
    'identity': IdentityRegularizer,
    'vector_quantizer': VectorQuantizer,
    'ema_vector_quantizer': EMAVectorQuantizer,
    'gumbel_quantizer': GumbelQuantizer,
}
DECODERS = {'decoder': Decoder, 'video_decoder': VideoDecoder}
FIRST_STAGES = {
    'none': lambda: None,
    'autoencoder_kl': _autoencoder_kl,
    'autoencoder': _autoencoder,
}
