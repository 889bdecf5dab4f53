"""Conditioners from configs: which embedder reads what."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from sgm_jax.conditioning.conditioner import GeneralConditioner, Slot
from sgm_jax.conditioning.embedders import (
    ClassEmbedder,
    ConcatTimestepEmbedder,
    Identity,
    OpenCLIPImagePrediction,
    VideoPrediction,
)
from sgm_jax.conditioning.spatial import GaussianEncoder, LowScaleEncoder, SpatialRescaler
from sgm_jax.conditioning.text import CLIPT5Text, CLIPText, OpenCLIPText, T5Text
from sgm_jax.config import build, call, lookup, plain
from sgm_jax.engines.first_stages import FIRST_STAGES, typed
from sgm_jax.networks.autoencoder import Encoder
from sgm_jax.networks.clip import ARCHITECTURES, OpenCLIP
from sgm_jax.networks.layers import Keys


def build_conditioner(nodes: Any, keys: Keys) -> GeneralConditioner:
    """Embedders in their order; a node's keys are those of its Slot and of its embedder."""
    embedders, slots = [], []
    slot_keys = set(Slot.__dataclass_fields__)
    for index, node in enumerate(nodes):
        where, node = f'model.conditioner[{index}]', plain(node)
        slots.append(call(Slot, {k: v for k, v in node.items() if k in slot_keys}, where=where))
        options = {k: v for k, v in node.items() if k not in slot_keys}
        embedders.append(build(EMBEDDERS, options, where=where, rngs=keys))
    return GeneralConditioner(embedders, slots)


def _open_clip_image(
    *,
    arch: str | Mapping = 'ViT-H-14',
    n_cond_frames: int = 1,
    attention: str = 'auto',
    dtype: str = 'float32',
    rngs: Keys,
) -> OpenCLIPImagePrediction:
    options = dict(arch) if isinstance(arch, Mapping) else lookup(ARCHITECTURES, arch, 'arch')
    run = typed({'attention': attention, 'dtype': dtype})
    clip = OpenCLIP(**options, **run, rngs=rngs)
    return OpenCLIPImagePrediction(clip, n_cond_frames=n_cond_frames)


def _video_prediction(
    *,
    encoder: Mapping | None = None,
    n_cond_frames: int = 1,
    scale_factor: float = 1.0,
    rngs: Keys,
) -> VideoPrediction:
    return VideoPrediction(
        build(FIRST_STAGES, encoder, where='video_prediction.encoder', rngs=rngs)
        if encoder
        else None,
        n_cond_frames=n_cond_frames,
        scale_factor=scale_factor,
    )


def _text(module: Callable) -> Callable:
    # The class's keywords are checked by name; `rngs` is one of them.
    @functools.wraps(module.__init__)
    def build(*, rngs: Keys, **options: Any) -> nnx.Module:
        return module(**typed({'dtype': 'float32', **options}), rngs=rngs)

    return build


def _low_scale(
    *,
    model: Mapping,
    linear_start: float,
    linear_end: float,
    timesteps: int = 1000,
    max_noise_level: int = 250,
    output_size: int | None = 64,
    scale_factor: float = 1.0,
    rngs: Keys,
) -> LowScaleEncoder:
    return LowScaleEncoder(
        build(FIRST_STAGES, model, where='low_scale.model', rngs=rngs),
        linear_start=linear_start,
        linear_end=linear_end,
        timesteps=timesteps,
        max_noise_level=max_noise_level,
        output_size=output_size,
        scale_factor=scale_factor,
    )


def _gaussian(*, ddconfig: Mapping, flatten_output: bool = True, rngs: Keys) -> GaussianEncoder:
    encoder = call(Encoder, typed(ddconfig), where='gaussian.ddconfig', rngs=rngs)
    return GaussianEncoder(encoder, flatten_output=flatten_output)


EMBEDDERS = {
    'clip_text': _text(CLIPText),
    'open_clip_text': _text(OpenCLIPText),
    't5_text': _text(T5Text),
    'clip_t5_text': _text(CLIPT5Text),
    'spatial_rescaler': SpatialRescaler,
    'low_scale': _low_scale,
    'gaussian': _gaussian,
    'concat_timestep': ConcatTimestepEmbedder,
    'class': ClassEmbedder,
    'open_clip_image': _open_clip_image,
    'video_prediction': _video_prediction,
    'identity': Identity,
}
