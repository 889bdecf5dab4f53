"""Which parts of an sgm checkpoint are which folders of diffusers, and what only one of the two has."""

import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop.diffusers_clip import (
    OPEN_CLIP_PENULTIMATE,
    OPEN_CLIP_TEXT,
    OPEN_CLIP_VISION,
    TEXT,
)
from sgm_jax.interop.diffusers_names import AUTOENCODER, UNET, Table
from sgm_jax.interop.tensors import Lazy

LOG = logging.getLogger(__name__)
NETWORK, STAGE, EMBEDDERS = 'model.diffusion_model.', 'first_stage_model.', 'conditioner.embedders.'
_FRAME = f'{EMBEDDERS}3.encoder.'
_CLIP_VISION = f'{EMBEDDERS}0.open_clip.model.'
# open_clip's ViT-H-14, the only one that was published with an image tower in a checkpoint of sgm.
_VOCABULARY, _CONTEXT = 49408, 77


class Part(NamedTuple):
    """A folder of diffusers.

    Attributes:
      folder: its name; kind: the class that reads it.
      table: its names.
      sources: where sgm has them: (what sgm's names begin with, what the table's begin with).
    """

    folder: str
    kind: str
    table: Table
    sources: tuple[tuple[str, str], ...]

    def taken(self, lazies: Mapping[str, Lazy]) -> tuple[dict[str, Lazy], dict[str, str]]:
        """(the part's tensors by the table's names, the sgm name of each)."""
        found, names = {}, {}
        for name, lazy in lazies.items():
            for ours, local in self.sources:
                if name.startswith(ours):
                    inner = local + name.removeprefix(ours)
                    found[inner], names[inner] = lazy, name
        return found, names

    def given(self, lazies: Mapping[str, Lazy]) -> dict[str, Lazy]:
        """The table's tensors under sgm's names."""
        found = {}
        for name, lazy in lazies.items():
            for ours, local in self.sources:
                if name.startswith(local):
                    found[ours + name.removeprefix(local)] = lazy
                    break
            else:
                raise UserError(f'{self.folder}: sgm has no place for {name}')
        return found


class Layout(NamedTuple):
    """A kind of checkpoint: 'sd1', 'sd2', 'sdxl', 'refiner' or 'svd'; and whether its decoder mixes time."""

    kind: str
    temporal: bool = False

    @property
    def parts(self) -> list[Part]:
        """Its folders."""
        network = (
            'UNetSpatioTemporalConditionModel' if self.kind == 'svd' else 'UNet2DConditionModel'
        )
        stage = Part('vae', 'AutoencoderKL', AUTOENCODER, ((STAGE, ''),))
        if self.temporal:
            # What a picture is encoded by, before sampling, is the conditioner's encoder.
            halves = tuple((_FRAME + half, half) for half in ('encoder.', 'quant_conv.'))
            sources = ((f'{STAGE}decoder.', 'decoder.'), *halves)
            stage = Part('vae', 'AutoencoderKLTemporalDecoder', AUTOENCODER, sources)
        return [Part('unet', network, UNET, ((NETWORK, ''),)), stage, *_encoders(self.kind)]


def _encoders(kind: str) -> list[Part]:
    projected = 'CLIPTextModelWithProjection'
    at = lambda index, name: ((f'{EMBEDDERS}{index}.{name}.', ''),)
    first = Part('text_encoder', 'CLIPTextModel', TEXT, at(0, 'transformer'))
    second = lambda index: Part('text_encoder_2', projected, OPEN_CLIP_TEXT, at(index, 'model'))
    if kind == 'svd':
        vision = 'CLIPVisionModelWithProjection'
        return [Part('image_encoder', vision, OPEN_CLIP_VISION, ((_CLIP_VISION, ''),))]
    if kind == 'sd2':
        return [first._replace(table=OPEN_CLIP_PENULTIMATE, sources=at(0, 'model'))]
    return {'sd1': [first], 'sdxl': [first, second(1)], 'refiner': [second(0)]}[kind]


def layout_of(names: Collection[str]) -> Layout:
    """The layout of an sgm checkpoint.

    Raises:
      UserError: diffusers has no pipeline for such a model.
    """
    has = lambda prefix: any(name.startswith(prefix) for name in names)
    video = any(name.startswith(NETWORK) and '.time_stack.' in name for name in names)
    temporal = any(name.startswith(STAGE) and '.time_stack.' in name for name in names)
    vector = has(f'{NETWORK}label_emb.')
    kind = None
    if video:
        kind = 'svd' if has(_CLIP_VISION) and has(_FRAME) else None
    elif has(f'{EMBEDDERS}0.transformer.'):
        both = has(f'{EMBEDDERS}1.model.')
        kind = 'sdxl' if vector and both else None if vector or both else 'sd1'
    elif has(f'{EMBEDDERS}0.model.'):
        kind = 'refiner' if vector else 'sd2'
    if kind is None or not has(NETWORK) or not has(STAGE):
        raise UserError(
            'diffusers has no pipeline for a model of these parts; it has those of Stable Diffusion 1 and 2, '
            'SDXL (base and refiner) and Stable Video Diffusion. A .safetensors file holds any'
        )
    return Layout(kind, temporal)


def constants(layout: Layout, lazies: Mapping[str, Lazy], where: str) -> dict[str, Lazy]:
    """What sgm's model has and diffusers' folders have not, for folders that others have written.

    Temperatures are what open_clip bounds them by, ln 100. The encoder of a video model's first stage, to
    which sgm gives no layer behind it, gets that layer built in. What no sample depends on is zero: layers
    behind the one that is used, the other tower of CLIP, and the decoder of an encoder.
    """
    found, unused = {}, {}
    if layout.kind in ('sdxl', 'refiner', 'sd2'):
        at = f'{EMBEDDERS}{int(layout.kind == "sdxl")}.model.'
        like = lazies[f'{at}token_embedding.weight']
        found[f'{at}logit_scale'] = _full((), like.dtype, math.log(100))
        if layout.kind == 'sd2':
            width = like.shape[1]
            unused[f'{at}text_projection'] = _full((width, width), like.dtype)
            unused |= _next_layer(f'{at}transformer.resblocks.', lazies)
    if layout.kind == 'svd':
        unused |= _text_tower(lazies)
        found[f'{_CLIP_VISION}logit_scale'] = unused.pop('logit_scale')
    if layout.temporal:
        found |= dict(_stage_encoder(lazies))
        unused |= dict(_frame_decoder(lazies))
    elif layout.kind == 'svd':
        # One autoencoder of pictures does both.
        stage = ((k.removeprefix(STAGE), x) for k, x in lazies.items() if k.startswith(STAGE))
        found |= {_FRAME + name: lazy for name, lazy in stage}
    if unused:
        LOG.warning(
            '%s leaves out %d tensors that no sample depends on (%s, ...): they are zeros here',
            where,
            len(unused),
            min(unused),
        )
    return found | unused


def _full(shape: tuple[int, ...], dtype: np.dtype, value: float = 0.0) -> Lazy:
    return Lazy(shape, dtype, lambda: np.full(shape, value, dtype))


def _next_layer(prefix: str, lazies: Mapping[str, Lazy]) -> dict[str, Lazy]:
    pattern = re.compile(re.escape(prefix) + r'(\d+)\.(.*)')
    layers: dict[int, dict[str, Lazy]] = {}
    for name, lazy in lazies.items():
        if match := pattern.match(name):
            layers.setdefault(int(match[1]), {})[match[2]] = lazy
    last = max(layers)
    return {f'{prefix}{last + 1}.{k}': _full(x.shape, x.dtype) for k, x in layers[last].items()}


def _text_tower(lazies: Mapping[str, Lazy]) -> dict[str, Lazy]:
    projection = lazies[f'{_CLIP_VISION}visual.proj']
    width, dtype = projection.shape[1], projection.dtype
    shapes = {
        'positional_embedding': (_CONTEXT, width),
        'text_projection': (width, width),
        'token_embedding.weight': (_VOCABULARY, width),
        'ln_final.weight': (width,),
        'ln_final.bias': (width,),
    }
    found = {_CLIP_VISION + name: _full(shape, dtype) for name, shape in shapes.items()}
    return {**found, 'logit_scale': _full((), dtype, math.log(100))}


def _stage_encoder(lazies: Mapping[str, Lazy]) -> Iterator[tuple[str, Lazy]]:
    """The conditioner's encoder as the first stage's, whose last convolution does what two do there."""
    encoder, quantized = f'{_FRAME}encoder.', f'{_FRAME}quant_conv.'
    weight, bias = (lazies[f'{quantized}{leaf}'] for leaf in ('weight', 'bias'))
    mix = lambda: weight.read()[:, :, 0, 0].astype(np.float32)
    for name, lazy in lazies.items():
        if not name.startswith(encoder):
            continue
        if name.startswith(f'{encoder}conv_out.'):
            lazy = _mixed(lazy, mix, bias if name.endswith('.bias') else None)
        yield f'{STAGE}encoder.{name.removeprefix(encoder)}', lazy


def _mixed(lazy: Lazy, mix: Callable[[], np.ndarray], bias: Lazy | None) -> Lazy:
    def read() -> np.ndarray:
        value = np.tensordot(mix(), lazy.read().astype(np.float32), 1)
        value = value if bias is None else value + bias.read().astype(np.float32)
        return value.astype(lazy.dtype)

    return lazy._replace(read=read)


def _frame_decoder(lazies: Mapping[str, Lazy]) -> Iterator[tuple[str, Lazy]]:
    """A decoder of pictures of the sizes of the one of clips."""
    decoder = f'{STAGE}decoder.'
    for name, lazy in lazies.items():
        if name.startswith(decoder) and not re.search(r'time_stack|time_mix|mix_factor', name):
            inner = name.removeprefix(decoder)
            yield f'{_FRAME}decoder.{inner}', _full(lazy.shape, lazy.dtype)
    channels, dtype = (
        lazies[f'{decoder}conv_in.weight'].shape[1],
        lazies[f'{decoder}conv_in.weight'].dtype,
    )
    yield f'{_FRAME}post_quant_conv.weight', _full((channels, channels, 1, 1), dtype)
    yield f'{_FRAME}post_quant_conv.bias', _full((channels,), dtype)
