"""Transformers over the pixels of a feature map, and over pixels and frames of a video's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sgm_jax.networks import placement
from sgm_jax.networks import remat as rules
from sgm_jax.networks.attention import BasicTransformerBlock, CrossAttention, FeedForward
from sgm_jax.networks.layers import (
    MLP,
    Buffer,
    GroupNorm,
    Keys,
    conv,
    fold,
    layer_norm,
    linear,
    stack,
    timestep_embedding,
)


def context_dims(context_dim: int | Sequence[int] | None, depth: int) -> Sequence[int | None]:
    """The context_dim of each of `depth` blocks, from one for all of them or one for each."""
    if not isinstance(context_dim, Sequence):
        return [context_dim] * depth
    if len(context_dim) == depth:
        return context_dim
    if len(set(context_dim)) != 1:
        raise ValueError(
            f'context_dim {list(context_dim)} has {len(context_dim)} different entries for a '
            f'transformer_depth of {depth}; give one for each block, or the same for all'
        )
    return [context_dim[0]] * depth


def in_turn(
    step: Callable[..., jax.Array], blocks: Sequence[Any], x: jax.Array, key: jax.Array | None
) -> jax.Array:
    """`x = step(block, x, fold(key, i))` for each block, compiled once for all.

    The blocks are of one kind (trees of modules alike). Their weights are joined here, inside of what is
    compiled, so that a state and its checkpoints hold a list of blocks either way. The copy lives as long
    as the transformer runs.
    """
    if len(blocks) == 1:
        return step(blocks[0], x, fold(key, 0))
    parts = [nnx.split(block) for block in blocks]
    states = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(state for _, state in parts))

    def one(x, turn):
        index, state = turn
        return step(nnx.merge(parts[0][0], state), x, fold(key, index)), None

    return jax.lax.scan(one, x, (jnp.arange(len(blocks)), states))[0]


class SpatialTransformer(nnx.Module):
    """Transformer blocks over the pixels of x, with a residual. Follows sgm's SpatialTransformer.

    Calls: x (n, h, w, c), context (n, m, context_dim), or a list of one for each block
    -> (n, h, w, c).
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        dim_head: int,
        depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        use_linear: bool = False,
        disable_self_attn: bool = False,
        remat: str = 'none',
        scan: bool = False,
        dropout: float = 0.0,
        attention: str = 'auto',
        dtype: Any,
        rngs: Keys,
    ):
        inner = heads * dim_head
        self.norm = GroupNorm(channels, epsilon=1e-6)
        project = linear if use_linear else conv
        size = () if use_linear else (1,)
        self.proj_in = project(channels, inner, *size, dtype=dtype, rngs=rngs)
        self.transformer_blocks = stack(
            lambda block_dim: BasicTransformerBlock(
                inner,
                heads=heads,
                dim_head=dim_head,
                context_dim=block_dim,
                disable_self_attn=disable_self_attn,
                dropout=dropout,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            ),
            context_dims(context_dim, depth),
            rngs=rngs,
        )
        self.proj_out = project(inner, channels, *size, zero=True, dtype=dtype, rngs=rngs)
        self.remat, self.scan = remat, scan

    def __call__(self, x, context=None, *, key=None):
        h = self.proj_in(self.norm(x))
        tokens = placement.tokens(placement.flatten_pixels(h))
        contexts = list(context) if isinstance(context, (list, tuple)) else [context]
        contexts = contexts if len(contexts) > 1 else contexts * len(self.transformer_blocks)
        step = lambda block, tokens, own, key: placement.tokens(block(tokens, own, key=key))
        step = rules.transformer_block(step, self.remat)
        if self.scan and all(own is contexts[0] for own in contexts):
            one = lambda block, tokens, key: step(block, tokens, contexts[0], key)
            tokens = in_turn(one, self.transformer_blocks, tokens, key)
        else:
            for i, (block, own) in enumerate(zip(self.transformer_blocks, contexts, strict=True)):
                tokens = step(block, tokens, own, fold(key, i))
        return x + self.proj_out(placement.unflatten_pixels(tokens, *h.shape[1:3]))


class AlphaBlender(nnx.Module):
    """Mixes what space and time make of a video: alpha * space + (1 - alpha) * time.

    Strategies: 'fixed' (alpha is a constant), 'learned' (the sigmoid of a parameter), and
    'learned_with_images' (as learned, but frames that are still images take no part in time: alpha 1).
    Follows sgm.modules.diffusionmodules.util.AlphaBlender.
    """

    def __init__(self, alpha: float, strategy: str):
        if strategy not in ('fixed', 'learned', 'learned_with_images'):
            raise ValueError(
                f'unknown merge_strategy {strategy!r}; choose one of: fixed, learned, '
                'learned_with_images'
            )
        variable = Buffer if strategy == 'fixed' else nnx.Param
        self.mix_factor = variable(jnp.full((1,), alpha, jnp.float32))
        self.strategy = strategy

    def alpha(self, image_only_indicator: jax.Array | None = None) -> jax.Array:
        """() or, where images have a say, as many numbers as the indicator (b, t) has."""
        alpha = self.mix_factor[...][0]
        if self.strategy != 'fixed':
            alpha = nnx.sigmoid(alpha)
        if self.strategy == 'learned_with_images' and image_only_indicator is not None:
            alpha = jnp.where(image_only_indicator.astype(bool), 1.0, alpha)
        return alpha

    def __call__(self, space, time, image_only_indicator=None):
        """Blends two (b, t, ...); the indicator is (b, t), and None means that all is video."""
        alpha = self.alpha(image_only_indicator).astype(space.dtype)
        alpha = alpha.reshape(*alpha.shape, *(1,) * (space.ndim - alpha.ndim))
        return alpha * space + (1.0 - alpha) * time


class VideoTransformerBlock(nnx.Module):
    """A transformer block over the frames at each pixel. Follows sgm's VideoTransformerBlock.

    Calls: x (b*t, pixels, c), context (b, m, context_dim) -> (b*t, pixels, c).
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        ff_in: bool = False,
        disable_self_attn: bool = False,
        disable_cross_attn: bool = False,
        dropout: float = 0.0,
        attention: str = 'auto',
        dtype: Any,
        rngs: Keys,
    ):
        inner = heads * dim_head
        options = dict(dropout=dropout, dtype=dtype, rngs=rngs)
        attend_to = functools.partial(
            CrossAttention,
            inner,
            heads=heads,
            dim_head=dim_head,
            attention=attention,
            **options,
        )
        # A change of width needs the projection too, and then has nothing to be a residual of.
        self.is_res = inner == dim
        if ff_in or not self.is_res:
            self.norm_in = layer_norm(dim, dtype=dtype, rngs=rngs)
            self.ff_in = FeedForward(dim, dim_out=inner, **options)
        else:
            self.norm_in = self.ff_in = None
        self.attn1 = attend_to(context_dim=context_dim if disable_self_attn else None)
        self.norm1 = layer_norm(inner, dtype=dtype, rngs=rngs)
        if disable_cross_attn:
            self.attn2 = self.norm2 = None
        else:
            self.attn2 = attend_to(context_dim=context_dim)
            self.norm2 = layer_norm(inner, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(inner, dim_out=dim, **options)
        self.norm3 = layer_norm(inner, dtype=dtype, rngs=rngs)
        self.disable_self_attn = disable_self_attn

    def __call__(self, x, context=None, *, num_frames: int, key=None):
        # Pixels stay an axis of their own: joined with the clips, neither could be split over devices.
        x = placement.tokens(rearrange(x, '(b t) s c -> b s t c', t=num_frames))
        if self.ff_in is not None:
            projected = self.ff_in(self.norm_in(x), key=fold(key, 0))
            x = projected + x if self.is_res else projected
        first = context if self.disable_self_attn else None
        x = self.attn1(self.norm1(x), first, key=fold(key, 1)) + x
        if self.attn2 is not None:
            x = self.attn2(self.norm2(x), context, key=fold(key, 2)) + x
        out = self.ff(self.norm3(x), key=fold(key, 3))
        x = out + x if self.is_res else out
        return placement.tokens(rearrange(x, 'b s t c -> (b t) s c'))


class SpatialVideoTransformer(nnx.Module):
    """Blocks over space and over time in turn, blended. Follows sgm's SpatialVideoTransformer.

    Calls: x (b*t, h, w, c), context (b*t, m, context_dim), time_context (b, m', time_context_dim),
    image_only_indicator (b, t) -> (b*t, h, w, c).
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        dim_head: int,
        depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        time_context_dim: int | None = None,
        use_linear: bool = False,
        use_spatial_context: bool = False,
        merge_strategy: str = 'fixed',
        merge_factor: float = 0.5,
        disable_self_attn: bool = False,
        disable_temporal_crossattention: bool = False,
        max_time_embed_period: float = 10000.0,
        remat: str = 'none',
        scan: bool = False,
        dropout: float = 0.0,
        attention: str = 'auto',
        dtype: Any,
        rngs: Keys,
    ):
        self.spatial = SpatialTransformer(
            channels,
            heads=heads,
            dim_head=dim_head,
            depth=depth,
            context_dim=context_dim,
            use_linear=use_linear,
            disable_self_attn=disable_self_attn,
            remat=remat,
            scan=scan,
            dropout=dropout,
            attention=attention,
            dtype=dtype,
            rngs=rngs,
        )
        if use_spatial_context:
            several = isinstance(context_dim, Sequence)
            time_context_dim = context_dim[0] if several else context_dim
        self.time_stack = stack(
            lambda _: VideoTransformerBlock(
                heads * dim_head,
                heads=heads,
                dim_head=dim_head,
                context_dim=time_context_dim,
                # sgm names the inner width here, and thereby has these layers whatever it is told.
                ff_in=True,
                disable_self_attn=disable_self_attn,
                disable_cross_attn=disable_temporal_crossattention,
                dropout=dropout,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            ),
            [None] * depth,
            rngs=rngs,
        )
        self.time_pos_embed = MLP(channels, channels * 4, channels, dtype=dtype, rngs=rngs)
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy)
        self.channels, self.use_spatial_context = channels, use_spatial_context
        self.max_period = max_time_embed_period

    def __call__(
        self,
        x,
        context=None,
        time_context=None,
        *,
        num_frames: int,
        image_only_indicator=None,
        key=None,
    ):
        if self.use_spatial_context:
            # A clip's frames see what its first frame saw.
            time_context = context[::num_frames]
        elif time_context is not None and time_context.ndim == 2:
            time_context = time_context[:, None]
        space = self.spatial
        h = space.proj_in(space.norm(x))
        tokens = placement.tokens(placement.flatten_pixels(h))
        frames = timestep_embedding(jnp.arange(num_frames), self.channels, self.max_period)
        frames = jnp.tile(self.time_pos_embed(frames), (len(x) // num_frames, 1))[:, None]
        if image_only_indicator is not None:
            image_only_indicator = image_only_indicator.reshape(-1)

        def step(blocks, tokens, context, time_context, key):
            block, mix_block = blocks
            tokens = placement.tokens(block(tokens, context, key=fold(key, 0)))
            mixed = mix_block(
                tokens + frames, time_context, num_frames=num_frames, key=fold(key, 1)
            )
            return placement.tokens(self.time_mixer(tokens, mixed, image_only_indicator))

        step = rules.transformer_block(step, space.remat)
        one = lambda blocks, tokens, key: step(blocks, tokens, context, time_context, key)
        pairs = list(zip(space.transformer_blocks, self.time_stack, strict=True))
        if space.scan:
            tokens = in_turn(one, pairs, tokens, key)
        else:
            for i, pair in enumerate(pairs):
                tokens = one(pair, tokens, fold(key, i))
        return x + space.proj_out(placement.unflatten_pixels(tokens, *h.shape[1:3]))
