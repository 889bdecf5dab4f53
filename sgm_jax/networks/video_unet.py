"""The video U-Net of Stable Video Diffusion and SV3D."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks import layout
from sgm_jax.networks import remat as rules
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.resblock import VideoResBlock
from sgm_jax.networks.transformer import SpatialVideoTransformer
from sgm_jax.networks.unet import Frame


class VideoUNet(nnx.Module):
    """The U-Net for video. Follows sgm.modules.diffusionmodules.video_model.VideoUNet.

    Args: as UNetModel, and sgm's keywords for time: merge_strategy ('fixed', 'learned',
      'learned_with_images') and merge_factor of the blend of space and time, video_kernel_size (one
      number, or (time, height, width)), use_spatial_context (the frames' attention sees the first
      frame's context) or time_context_dim, disable_temporal_crossattention, max_ddpm_temb_period.
      extra_ff_mix_layer changes nothing: sgm has those layers either way. dims is 2.

    Calls: x (b*t, h, w, in_channels), timesteps (b*t,), context (b*t, m, context_dim),
    y (b*t, adm_in_channels), num_frames t, image_only_indicator (b, t; ones where a frame is a still
    image; None is all video), time_context (b, m, time_context_dim) -> (b*t, h, w, out_channels) float32.
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
        transformer_depth_middle: int | None = None,
        context_dim: int | Sequence[int] | None = None,
        time_context_dim: int | None = None,
        extra_ff_mix_layer: bool = False,
        use_spatial_context: bool = False,
        merge_strategy: str = 'fixed',
        merge_factor: float = 0.5,
        video_kernel_size: int | Sequence[int] = 3,
        use_linear_in_transformer: bool = False,
        adm_in_channels: int | None = None,
        disable_temporal_crossattention: bool = False,
        max_ddpm_temb_period: float = 10000.0,
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
            transformer_depth_middle=transformer_depth_middle,
            resblock_updown=resblock_updown,
        )
        if dims != 2:
            raise ValueError(f'a video is frames of dims 2, got {dims}')
        if isinstance(video_kernel_size, int):
            video_kernel_size = (video_kernel_size,) * 3
        merge = dict(merge_strategy=merge_strategy, merge_factor=merge_factor)

        def res_block(part: layout.Res) -> VideoResBlock:
            return VideoResBlock(
                part.inputs,
                4 * model_channels,
                out_channels=part.outputs,
                resample=part.resample,
                dropout=dropout,
                use_scale_shift_norm=use_scale_shift_norm,
                video_kernel_size=tuple(video_kernel_size),
                dtype=dtype,
                rngs=rngs,
                **merge,
            )

        def transformer(part: layout.Attention) -> SpatialVideoTransformer:
            return SpatialVideoTransformer(
                part.channels,
                heads=part.heads,
                dim_head=part.dim_head,
                depth=part.depth,
                context_dim=context_dim,
                time_context_dim=time_context_dim,
                use_linear=use_linear_in_transformer,
                use_spatial_context=use_spatial_context,
                disable_temporal_crossattention=disable_temporal_crossattention,
                max_time_embed_period=max_ddpm_temb_period,
                remat=remat,
                scan=scan,
                dropout=dropout,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
                **merge,
            )

        self.frame = Frame(
            plan,
            out_channels=out_channels,
            num_classes=num_classes,
            adm_in_channels=adm_in_channels,
            conv_resample=conv_resample,
            res_block=res_block,
            transformer=transformer,
            dtype=dtype,
            rngs=rngs,
        )
        self.remat = remat

    def __call__(
        self,
        x,
        timesteps,
        context=None,
        y=None,
        *,
        num_frames: int,
        image_only_indicator=None,
        time_context=None,
        key=None,
    ):
        if len(x) % num_frames:
            raise ValueError(f'{len(x)} frames do not divide into clips of {num_frames}')
        emb = self.frame.embed(timesteps, y)
        if image_only_indicator is not None:
            image_only_indicator = jnp.atleast_2d(image_only_indicator)
        cast = lambda c: None if c is None else c.astype(self.frame.dtype)

        def apply(layer, h, emb, context, time_context, indicator, key):
            video = dict(num_frames=num_frames, image_only_indicator=indicator, key=key)
            if isinstance(layer, VideoResBlock):
                return layer(h, emb, **video)
            return layer(h, context, time_context, **video)

        block, layer = (wrap(apply, self.remat) for wrap in (rules.residual_block, rules.layer))
        run = lambda part: block if isinstance(part, VideoResBlock) else layer
        conditioning = (emb, cast(context), cast(time_context), image_only_indicator)
        return self.frame.run(x, lambda part, h, key: run(part)(part, h, *conditioning, key), key)
