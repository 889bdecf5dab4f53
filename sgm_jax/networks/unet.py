"""The image U-Net of SDXL and SD 2.1, and the frame that the video U-Net shares with it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks import layout, placement
from sgm_jax.networks import remat as rules
from sgm_jax.networks.layers import MLP, GroupNorm, Keys, conv, fold, linear, timestep_embedding
from sgm_jax.networks.resblock import Downsample, ResBlock, Upsample
from sgm_jax.networks.transformer import SpatialTransformer


class Sinusoid(nnx.Module):
    """timestep_embedding as a layer: (n,) to (n, dim)."""

    def __init__(self, dim: int):
        self.dim = dim

    def __call__(self, x: jax.Array) -> jax.Array:
        return timestep_embedding(x, self.dim)


class Identity(nnx.Module):
    """Nothing, where a layer was left out."""


def label_embedding(
    num_classes: int | str | None,
    *,
    model_channels: int,
    width: int,
    adm_in_channels: int | None,
    dtype: Any,
    rngs: Keys,
) -> nnx.Module | None:
    """How the vector y enters: a table of classes, 'continuous', 'timestep' or 'sequential'."""
    mlp = lambda inputs: MLP(inputs, width, width, dtype=dtype, rngs=rngs)
    if num_classes is None:
        return None
    if isinstance(num_classes, int):
        return nnx.Embed(num_classes, width, dtype=dtype, rngs=rngs)
    if num_classes == 'continuous':
        return linear(1, width, dtype=dtype, rngs=rngs)
    if num_classes == 'timestep':
        return nnx.List([Sinusoid(model_channels), mlp(model_channels)])
    if num_classes == 'sequential':
        if adm_in_channels is None:
            raise ValueError("num_classes='sequential' needs adm_in_channels")
        return nnx.List([mlp(adm_in_channels)])
    raise ValueError(
        f'unknown num_classes {num_classes!r}; choose a number, or one of: continuous, sequential, '
        'timestep'
    )


def build_blocks(
    blocks: Iterable[layout.Block],
    *,
    res_block: Callable[[layout.Res], nnx.Module],
    transformer: Callable[[layout.Attention], nnx.Module],
    conv_resample: bool,
    dims: int,
    dtype: Any,
    rngs: Keys,
) -> nnx.List:
    """Modules for a part of a layout."""
    options = dict(dims=dims, dtype=dtype, rngs=rngs)

    def build(part):
        match part:
            case layout.Conv():
                return conv(part.inputs, part.outputs, **options)
            case layout.Res():
                return res_block(part)
            case layout.Attention():
                return transformer(part)
            case layout.Resample(direction='up'):
                return Upsample(part.channels, conv_resample, **options)
            case layout.Resample():
                return Downsample(part.channels, conv_resample, **options)
            case layout.Nothing():
                return Identity()

    return nnx.List(nnx.List(build(part) for part in block) for block in blocks)


class Frame(nnx.Module):
    """What any of these U-Nets is around its blocks: embeddings, skips, the way in and out."""

    def __init__(
        self,
        plan: layout.Plan,
        *,
        out_channels: int,
        num_classes: int | str | None,
        adm_in_channels: int | None,
        conv_resample: bool,
        res_block: Callable,
        transformer: Callable,
        dims: int = 2,
        dtype: Any,
        rngs: Keys,
    ):
        width = 4 * plan.model_channels
        plans = plan.layout()
        self.time_embed = MLP(plan.model_channels, width, width, dtype=dtype, rngs=rngs)
        self.label_emb = label_embedding(
            num_classes,
            model_channels=plan.model_channels,
            width=width,
            adm_in_channels=adm_in_channels,
            dtype=dtype,
            rngs=rngs,
        )
        options = dict(
            res_block=res_block,
            transformer=transformer,
            conv_resample=conv_resample,
            dims=dims,
            dtype=dtype,
            rngs=rngs,
        )
        self.input_blocks = build_blocks(plans.down, **options)
        self.middle_block = build_blocks([plans.middle], **options)[0]
        self.output_blocks = build_blocks(plans.up, **options)
        self.out_norm = GroupNorm(plans.out_channels)
        self.out_conv = conv(
            plan.model_channels, out_channels, zero=True, dims=dims, dtype=dtype, rngs=rngs
        )
        self.in_channels, self.model_channels = plan.in_channels, plan.model_channels
        self.factor, self.dims, self.dtype = plans.factor, dims, dtype

    def embed(self, timesteps: jax.Array, y: jax.Array | None) -> jax.Array:
        """(n,) noise levels and the vector, if there is one, to (n, 4 * model_channels)."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        if (y is not None) != (self.label_emb is not None):
            raise ValueError(
                'y was given to a U-Net without num_classes'
                if self.label_emb is None
                else 'this U-Net has num_classes: give it y (the vector conditioning)'
            )
        if y is None:
            return emb
        layers = self.label_emb if isinstance(self.label_emb, nnx.List) else [self.label_emb]
        for layer in layers:
            y = layer(y)
        return emb + y

    def run(self, x: jax.Array, apply: Callable, key: jax.Array | None) -> jax.Array:
        """Down, middle and up, with `apply(layer, h, key)` for each layer that takes conditioning."""
        if x.ndim != self.dims + 2:
            raise ValueError(f'the U-Net takes {self.dims + 2} axes (n, ..., c), got {x.shape}')
        check_size(x, self.in_channels, self.factor)
        count = 0

        def block(layers, h):
            nonlocal count
            for layer in layers:
                if isinstance(layer, Identity):
                    continue
                if isinstance(layer, (nnx.Conv, Upsample, Downsample)):
                    h = layer(h)
                else:
                    h = apply(layer, h, fold(key, count))
                    count += 1
                h = placement.feature_map(h)
            return h

        h, skips = placement.feature_map(x.astype(self.dtype)), []
        for layers in self.input_blocks:
            h = block(layers, h)
            skips.append(h)
        h = block(self.middle_block, h)
        for layers in self.output_blocks:
            h = block(layers, jnp.concatenate([h, skips.pop()], -1))
        return self.out_conv(self.out_norm(h, silu=True)).astype(jnp.float32)


def check_size(x: jax.Array, channels: int, factor: int) -> None:
    """Raises a ValueError that says which size would do."""
    size = x.shape[1:-1][-2:]
    if x.shape[-1] != channels:
        raise ValueError(f'the U-Net takes {channels} channels, got {x.shape[-1]} in {x.shape}')
    if any(n % factor for n in size):
        near = [max(factor, round(n / factor) * factor) for n in size]
        raise ValueError(
            f'the U-Net needs a height and width divisible by {factor}, got '
            f'{"x".join(map(str, size))}; use {"x".join(map(str, near))}'
        )


class UNetModel(nnx.Module):
    """The U-Net for images. Follows sgm.modules.diffusionmodules.openaimodel.UNetModel.

    Args (sgm's names): in_channels, model_channels, out_channels, num_res_blocks (one number or one
      per level), attention_resolutions (downsampling factors with a transformer), channel_mult (one
      per level), num_classes (how y enters: a number of classes, 'sequential' with adm_in_channels,
      'continuous', 'timestep', or None), num_heads or num_head_channels, transformer_depth (one or one
      per level), context_dim (one, or one for each block of a transformer: then a list of contexts),
      dims (1 or 3: lines or volumes, without attention), and the switches of the same names.
      remat: what is computed again in the backward pass instead of kept, a name in remat.RULES;
        use_checkpoint, sgm's, is its 'block'.
      scan: compile one block of each transformer, and run it with the weights of all in turn.
      attention: an implementation of sgm_jax.networks.attention.attend.
      dtype: what it computes in; parameters are float32.

    Calls: x (n, h, w, in_channels), timesteps (n,), context (n, m, context_dim), y (n, adm_in_channels)
    or (n,) classes -> (n, h, w, out_channels) float32. `key` turns dropout on.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | str | None = None,
        use_checkpoint: bool = False,
        remat: str | None = None,
        scan: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        transformer_depth: int | Sequence[int] = 1,
        context_dim: int | Sequence[int] | None = None,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
        disable_middle_transformer: bool = False,
        use_linear_in_transformer: bool = False,
        adm_in_channels: int | None = None,
        dims: int = 2,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        remat = rules.check(remat, use_checkpoint)
        plan = layout.Plan(
            in_channels=in_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            transformer_depth=transformer_depth,
            resblock_updown=resblock_updown,
            disable_self_attentions=disable_self_attentions,
            num_attention_blocks=num_attention_blocks,
            disable_middle_self_attn=disable_middle_self_attn,
            disable_middle_transformer=disable_middle_transformer,
            has_context=context_dim is not None,
        )
        if dims not in (1, 2, 3):
            raise ValueError(f'dims is 1, 2 or 3, got {dims}')

        def res_block(part: layout.Res) -> ResBlock:
            return ResBlock(
                part.inputs,
                4 * model_channels,
                out_channels=part.outputs,
                resample=part.resample,
                dropout=dropout,
                use_scale_shift_norm=use_scale_shift_norm,
                dims=dims,
                dtype=dtype,
                rngs=rngs,
            )

        def transformer(part: layout.Attention) -> SpatialTransformer:
            if dims != 2:
                raise ValueError(
                    f'attention is for images: with dims={dims} set attention_resolutions to [] and '
                    'disable_middle_transformer'
                )
            return SpatialTransformer(
                part.channels,
                heads=part.heads,
                dim_head=part.dim_head,
                depth=part.depth,
                context_dim=context_dim,
                use_linear=use_linear_in_transformer,
                disable_self_attn=part.disable_self_attn,
                remat=remat,
                scan=scan,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            )

        self.frame = Frame(
            plan,
            out_channels=out_channels,
            num_classes=num_classes,
            adm_in_channels=adm_in_channels,
            conv_resample=conv_resample,
            res_block=res_block,
            transformer=transformer,
            dims=dims,
            dtype=dtype,
            rngs=rngs,
        )
        self.remat = remat

    def __call__(self, x, timesteps, context=None, y=None, *, key=None):
        emb = self.frame.embed(timesteps, y)
        context = jax.tree.map(lambda c: c.astype(self.frame.dtype), context)

        def apply(layer, h, emb, context, key):
            if isinstance(layer, ResBlock):
                return layer(h, emb, key=key)
            return layer(h, context, key=key)

        block, layer = (wrap(apply, self.remat) for wrap in (rules.residual_block, rules.layer))
        run = lambda part: block if isinstance(part, ResBlock) else layer
        conditioning = emb, context
        return self.frame.run(x, lambda part, h, key: run(part)(part, h, *conditioning, key), key)
