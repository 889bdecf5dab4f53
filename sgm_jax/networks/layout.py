"""The plan of a U-Net as data: which block stands where, with how many channels.

Two networks are built from it, one for images and one for video, each with blocks of its own.
Follows the constructor of sgm.modules.diffusionmodules.openaimodel.UNetModel.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Conv:
    """The first convolution."""

    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True)
class Res:
    """A residual block; `resample` is 'none', 'up' or 'down'."""

    inputs: int
    outputs: int
    resample: str = 'none'


@dataclasses.dataclass(frozen=True)
class Attention:
    """A transformer on the feature map."""

    channels: int
    heads: int
    dim_head: int
    depth: int
    disable_self_attn: bool = False


@dataclasses.dataclass(frozen=True)
class Resample:
    """A change of size without a residual block."""

    channels: int
    direction: str


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Keeps a place, so that what follows keeps its number."""


Block = tuple[Conv | Res | Attention | Resample | Nothing, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Blocks down, in the middle, and up; `factor` is what height and width must be divisible by."""

    down: tuple[Block, ...]
    middle: Block
    up: tuple[Block, ...]
    out_channels: int
    factor: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """sgm's keywords that decide the layout; see UNetModel for what they mean."""

    in_channels: int
    model_channels: int
    num_res_blocks: int | Sequence[int]
    attention_resolutions: Sequence[int]
    channel_mult: Sequence[int] = (1, 2, 4, 8)
    num_heads: int = -1
    num_head_channels: int = -1
    transformer_depth: int | Sequence[int] = 1
    transformer_depth_middle: int | None = None
    resblock_updown: bool = False
    disable_self_attentions: Sequence[bool] | None = None
    num_attention_blocks: Sequence[int] | None = None
    disable_middle_self_attn: bool = False
    disable_middle_transformer: bool = False
    has_context: bool = True

    def layout(self) -> Layout:
        levels = len(self.channel_mult)
        res_blocks = self._per_level('num_res_blocks', self.num_res_blocks)
        depths = self.transformer_depth
        depths = [depths] * levels if isinstance(depths, int) else depths
        self._check(res_blocks)
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError('set num_heads or num_head_channels')

        def block(level: int, index: int, inputs: int, no_self: bool) -> list:
            channels = self.channel_mult[level] * self.model_channels
            parts = [Res(inputs, channels)]
            wanted = self.num_attention_blocks is None or index < self.num_attention_blocks[level]
            if 2**level in self.attention_resolutions and wanted:
                if level >= len(depths):
                    raise ValueError(
                        f'transformer_depth has {len(depths)} entries, and level {level} needs one'
                    )
                no_self = no_self and self.disable_self_attentions[level]
                parts.append(self._attention(channels, depths[level], no_self))
            return parts

        def resample(channels: int, direction: str):
            if self.resblock_updown:
                return Res(channels, channels, direction)
            return Resample(channels, direction)

        no_self = self.disable_self_attentions is not None
        down = [(Conv(self.in_channels, self.model_channels),)]
        channels, skips = self.model_channels, [self.model_channels]
        for level in range(levels):
            for index in range(res_blocks[level]):
                # On the way down, sgm heeds the switch only where there is a context to attend to.
                down.append(tuple(block(level, index, channels, no_self and self.has_context)))
                channels = self.channel_mult[level] * self.model_channels
                skips.append(channels)
            if level != levels - 1:
                down.append((resample(channels, 'down'),))
                skips.append(channels)

        depth = self.transformer_depth_middle
        depth = depths[-1] if depth is None else depth
        attention = Nothing()
        if not self.disable_middle_transformer:
            attention = self._attention(channels, depth, self.disable_middle_self_attn)
        middle = (Res(channels, channels), attention, Res(channels, channels))

        up = []
        for level in reversed(range(levels)):
            for index in range(res_blocks[level] + 1):
                parts = block(level, index, channels + skips.pop(), no_self)
                channels = self.channel_mult[level] * self.model_channels
                if level and index == res_blocks[level]:
                    parts.append(resample(channels, 'up'))
                up.append(tuple(parts))
        return Layout(tuple(down), middle, tuple(up), channels, 2 ** (levels - 1))

    def _check(self, res_blocks: Sequence[int]) -> None:
        for name in ('disable_self_attentions', 'num_attention_blocks'):
            if getattr(self, name) is not None:
                self._per_level(name, getattr(self, name))
        for level, (wanted, there) in enumerate(
            zip(self.num_attention_blocks or (), res_blocks, strict=False)
        ):
            if wanted > there:
                raise ValueError(
                    f'num_attention_blocks asks for {wanted} at level {level}, which has '
                    f'{there} num_res_blocks'
                )

    def _per_level(self, name: str, value: int | Sequence[int]) -> Sequence[int]:
        if isinstance(value, int):
            return [value] * len(self.channel_mult)
        if len(value) != len(self.channel_mult):
            raise ValueError(
                f'{name} has {len(value)} entries for {len(self.channel_mult)} levels of channel_mult'
            )
        return value

    def _attention(self, channels: int, depth: int, disable_self_attn: bool) -> Attention:
        if self.num_head_channels == -1:
            heads, dim_head = self.num_heads, channels // self.num_heads
        else:
            heads, dim_head = channels // self.num_head_channels, self.num_head_channels
        return Attention(channels, heads, dim_head, depth, disable_self_attn)
