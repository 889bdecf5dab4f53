"""One table for each network: what sgm calls its parts, and what diffusers does. Read in both directions.

A table is a list of pairs (sgm's, diffusers'), each the beginning of a name up to a dot, or a whole name;
the longest beginning counts, and what follows it stays. Blocks are numbered differently: sgm counts all
blocks of a half, diffusers those of a level; the levels are told from the names of either side. Sources:
sgm's openaimodel.py, video_model.py, model.py, temporal_ae.py; diffusers' unet_2d_condition.py,
unet_spatio_temporal_condition.py, autoencoder_kl.py, autoencoder_kl_temporal_decoder.py.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop.tensors import Lazy

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The names of one network, and the layouts that differ.

    Attributes:
      of_sgm, of_diffusers: the pairs for a network, from all its names on that side.
      squeezed: of sgm's names, which are 1x1 convolutions where diffusers has matrices.
      turned: which are matrices (in, out) where diffusers has (out, in).
      fused: whether sgm keeps queries, keys and values in one array.
      spare: of sgm's names, which diffusers has no place for.
    """

    of_sgm: Callable[[Iterable[str]], Pairs]
    of_diffusers: Callable[[Iterable[str]], Pairs]
    squeezed: str = r'(?!)'
    turned: str = r'(?!)'
    spare: str = r'(?!)'
    fused: bool = False

    def outward(self, lazies: Mapping[str, Lazy]) -> tuple[dict[str, Lazy], dict[str, Lazy]]:
        """Tensors of sgm by diffusers' names, and by their own those without a place.

        Raises:
          UserError: lists those that diffusers knows nothing of.
        """
        lazies = _split(lazies) if self.fused else lazies
        table, found, spare = dict(self.of_sgm(lazies)), {}, {}
        for name, lazy in lazies.items():
            theirs = _translated(table, name)
            if theirs is None:
                spare[name] = lazy
            elif re.fullmatch(self.squeezed, name):
                found[theirs] = _reshaped(lazy, lazy.shape[:2])
            else:
                found[theirs] = _turned(lazy) if re.fullmatch(self.turned, name) else lazy
        _refuse((name for name in spare if not re.fullmatch(self.spare, name)), 'diffusers')
        return found, (_joined(spare) if self.fused else spare)

    def inward(self, lazies: Mapping[str, Lazy]) -> dict[str, Lazy]:
        """Tensors of diffusers by sgm's names.

        Raises:
          UserError: lists those that sgm knows nothing of.
        """
        table = {theirs: ours for ours, theirs in self.of_diffusers(lazies)}
        found, unknown = {}, []
        for name, lazy in lazies.items():
            ours = _translated(table, name)
            if ours is None:
                unknown.append(name)
            elif re.fullmatch(self.squeezed, ours):
                found[ours] = _reshaped(lazy, (*lazy.shape[:2], 1, 1))
            else:
                found[ours] = _turned(lazy) if re.fullmatch(self.turned, ours) else lazy
        _refuse(unknown, 'sgm')
        return _joined(found) if self.fused else found


def _refuse(names: Iterable[str], whose: str) -> None:
    names = sorted(names)
    if names:
        raise UserError(f'{whose} has no place for {len(names)} tensors, such as {names[0]}')


def _translated(table: Mapping[str, str], name: str) -> str | None:
    end = len(name)
    while end and name[:end] not in table:
        end = name.rfind('.', 0, end - 1) + 1
    return table[name[:end]] + name[end:] if end else None


def _reshaped(lazy: Lazy, shape: tuple[int, ...]) -> Lazy:
    return Lazy(shape, lazy.dtype, lambda: lazy.read().reshape(shape))


def _turned(lazy: Lazy) -> Lazy:
    return Lazy(lazy.shape[::-1], lazy.dtype, lambda: lazy.read().T)


_QKV = ('q_proj', 'k_proj', 'v_proj')


def _split(lazies: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Arrays of PyTorch's MultiheadAttention as three: in_proj_weight as q_proj.weight and so on."""
    found = {}
    for name, lazy in lazies.items():
        head, fused, leaf = name.partition('in_proj_')
        if not fused:
            found[name] = lazy
            continue
        rows = lazy.shape[0] // 3
        for index, part in enumerate(_QKV):
            read = lambda lazy=lazy, at=index * rows, rows=rows: lazy.read()[at : at + rows]
            found[f'{head}{part}.{leaf}'] = Lazy((rows, *lazy.shape[1:]), lazy.dtype, read)
    return found


def _joined(lazies: Mapping[str, Lazy]) -> dict[str, Lazy]:
    found = {}
    for name, lazy in lazies.items():
        head, first, leaf = name.partition(f'{_QKV[0]}.')
        parts = [lazies.get(f'{head}{part}.{leaf}') for part in _QKV] if first else ()
        if first and all(parts):
            read = lambda parts=parts: np.concatenate([part.read() for part in parts])
            shape = (sum(part.shape[0] for part in parts), *lazy.shape[1:])
            found[f'{head}in_proj_{leaf}'] = Lazy(shape, lazy.dtype, read)
        elif not any(f'.{part}.' in name for part in _QKV[1:]):
            found[name] = lazy
    return found


class Level(NamedTuple):
    """The blocks of one resolution: for each whether it attends, and whether a change of size follows."""

    attends: tuple[bool, ...]
    resizes: bool


def levels_of_sgm(names: Iterable[str], half: str) -> list[Level]:
    """The levels of 'input_blocks' or 'output_blocks', in their order."""
    pattern = re.compile(rf'{half}\.(\d+)\.(\d)\.(\w+)')
    parts: dict[int, dict[int, set[str]]] = {}
    for match in filter(None, map(pattern.match, names)):
        block, place, part = match.groups()
        parts.setdefault(int(block), {}).setdefault(int(place), set()).add(part)
    levels, attends = [], []
    for block in sorted(parts):
        if half == 'input_blocks' and block == 0:
            continue  # the first convolution
        is_resize = [bool(parts[block][place] & {'op', 'conv'}) for place in sorted(parts[block])]
        if not is_resize[0]:
            attends.append(len(is_resize) > 1 and not is_resize[1])
        if any(is_resize):
            levels.append(Level(tuple(attends), True))
            attends = []
    return [*levels, Level(tuple(attends), False)] if attends else levels


def levels_of_diffusers(names: Iterable[str], half: str) -> list[Level]:
    """The levels of 'down_blocks' or 'up_blocks', in their order."""
    pattern = re.compile(rf'{half}\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.')
    found: dict[int, set[tuple[str, int]]] = {}
    for match in filter(None, map(pattern.match, names)):
        found.setdefault(int(match[1]), set()).add((match[2], int(match[3])))
    return [
        Level(
            tuple(
                ('attentions', index) in parts
                for index in range(sum(kind == 'resnets' for kind, _ in parts))
            ),
            any(kind.endswith('samplers') for kind, _ in parts),
        )
        for _, parts in sorted(found.items())
    ]


_UNET_RESNET = [
    ('in_layers.0.', 'norm1.'),
    ('in_layers.2.', 'conv1.'),
    ('emb_layers.1.', 'time_emb_proj.'),
    ('out_layers.0.', 'norm2.'),
    ('out_layers.3.', 'conv2.'),
    ('skip_connection.', 'conv_shortcut.'),
]
_UNET_ENDS = [
    ('time_embed.0.', 'time_embedding.linear_1.'),
    ('time_embed.2.', 'time_embedding.linear_2.'),
    ('label_emb.0.0.', 'add_embedding.linear_1.'),
    ('label_emb.0.2.', 'add_embedding.linear_2.'),
    ('input_blocks.0.0.', 'conv_in.'),
    ('out.0.', 'conv_norm_out.'),
    ('out.2.', 'conv_out.'),
]
# Of a transformer that also mixes time; everything else in a transformer has one name.
_TIME_TRANSFORMER = [
    ('time_stack.', 'temporal_transformer_blocks.'),
    ('time_pos_embed.0.', 'time_pos_embed.linear_1.'),
    ('time_pos_embed.2.', 'time_pos_embed.linear_2.'),
]


def _under(ours: str, theirs: str, pairs: Pairs) -> Pairs:
    return [(ours + a, theirs + b) for a, b in pairs]


def _unet_resnet(ours: str, theirs: str, video: bool) -> Pairs:
    if not video:
        return _under(ours, theirs, _UNET_RESNET)
    return [
        *_under(ours, f'{theirs}spatial_res_block.', _UNET_RESNET),
        *_under(f'{ours}time_stack.', f'{theirs}temporal_res_block.', _UNET_RESNET),
        (f'{ours}time_mixer.', f'{theirs}time_mixer.'),
    ]


def _transformer(ours: str, theirs: str) -> Pairs:
    return [(ours, theirs), *_under(ours, theirs, _TIME_TRANSFORMER)]


def _unet(down: list[Level], up: list[Level], video: bool) -> Pairs:
    pairs = list(_UNET_ENDS)
    block = 1
    for level, (attends, resizes) in enumerate(down):
        theirs = f'down_blocks.{level}.'
        for index, attending in enumerate(attends):
            pairs += _unet_resnet(f'input_blocks.{block}.0.', f'{theirs}resnets.{index}.', video)
            if attending:
                pairs += _transformer(f'input_blocks.{block}.1.', f'{theirs}attentions.{index}.')
            block += 1
        if resizes:
            pairs.append((f'input_blocks.{block}.0.op.', f'{theirs}downsamplers.0.conv.'))
            block += 1
    for index, ours in enumerate((0, 2)):
        pairs += _unet_resnet(f'middle_block.{ours}.', f'mid_block.resnets.{index}.', video)
    pairs += _transformer('middle_block.1.', 'mid_block.attentions.0.')
    block = 0
    for level, (attends, resizes) in enumerate(up):
        theirs = f'up_blocks.{level}.'
        for index, attending in enumerate(attends):
            pairs += _unet_resnet(f'output_blocks.{block}.0.', f'{theirs}resnets.{index}.', video)
            if attending:
                pairs += _transformer(f'output_blocks.{block}.1.', f'{theirs}attentions.{index}.')
            block += 1
        if resizes:
            # It follows in the last block, after its attention if it has one.
            place = 2 if attends[-1] else 1
            ours = f'output_blocks.{block - 1}.{place}.conv.'
            pairs.append((ours, f'{theirs}upsamplers.0.conv.'))
    return pairs


def _unet_of_sgm(names: Iterable[str]) -> Pairs:
    halves = (levels_of_sgm(names, half) for half in ('input_blocks', 'output_blocks'))
    return _unet(*halves, any('.time_stack.' in name for name in names))


def _unet_of_diffusers(names: Iterable[str]) -> Pairs:
    halves = (levels_of_diffusers(names, half) for half in ('down_blocks', 'up_blocks'))
    return _unet(*halves, any('.temporal_res_block.' in name for name in names))


UNET = Table(of_sgm=_unet_of_sgm, of_diffusers=_unet_of_diffusers)

_STAGE_RESNET = [
    ('norm1.', 'norm1.'),
    ('conv1.', 'conv1.'),
    ('norm2.', 'norm2.'),
    ('conv2.', 'conv2.'),
    ('nin_shortcut.', 'conv_shortcut.'),
]
_STAGE_ATTENTION = [
    ('norm.', 'group_norm.'),
    ('q.', 'to_q.'),
    ('k.', 'to_k.'),
    ('v.', 'to_v.'),
    ('proj_out.', 'to_out.0.'),
]
_STAGE_ENDS = [
    ('conv_in.', 'conv_in.'),
    ('norm_out.', 'conv_norm_out.'),
    ('conv_out.', 'conv_out.'),
]


def _stage_resnet(ours: str, theirs: str, video: bool) -> Pairs:
    if not video:
        return _under(ours, theirs, _STAGE_RESNET)
    return [
        *_under(ours, f'{theirs}spatial_res_block.', _STAGE_RESNET),
        *_under(f'{ours}time_stack.', f'{theirs}temporal_res_block.', _UNET_RESNET),
        (f'{ours}mix_factor', f'{theirs}time_mixer.mix_factor'),
    ]


def _coder(
    coder: str, ours: str, theirs: str, levels: list[int], resize: tuple[str, str], video: bool
) -> Pairs:
    """One half of an autoencoder. `levels`: how many blocks each of sgm's levels has."""
    pairs = _under(f'{coder}.', f'{coder}.', _STAGE_ENDS)
    for index in (0, 1):
        block, resnet = f'mid.block_{index + 1}.', f'mid_block.resnets.{index}.'
        pairs += _stage_resnet(f'{coder}.{block}', f'{coder}.{resnet}', video)
    attention = (f'{coder}.mid.attn_1.', f'{coder}.mid_block.attentions.0.')
    pairs += _under(*attention, _STAGE_ATTENTION)
    for level, count in enumerate(levels):
        # diffusers numbers the decoder's levels from the smallest, sgm from the largest.
        number = level if coder == 'encoder' else len(levels) - 1 - level
        block, resnet = f'{coder}.{ours}.{level}.', f'{coder}.{theirs}.{number}.'
        for index in range(count):
            pairs += _stage_resnet(f'{block}block.{index}.', f'{resnet}resnets.{index}.', video)
        pairs.append((f'{block}{resize[0]}.', f'{resnet}{resize[1]}.0.'))
    return pairs


def _counts(names: Iterable[str], pattern: str) -> list[int]:
    """How many blocks each level has."""
    found = {(int(m[1]), int(m[2])) for m in filter(None, map(re.compile(pattern).match, names))}
    levels = max((level for level, _ in found), default=-1) + 1
    return [sum(level == other for other, _ in found) for level in range(levels)]


def _stage(encoder: list[int], decoder: list[int], video: bool) -> Pairs:
    pairs = _coder('encoder', 'down', 'down_blocks', encoder, ('downsample', 'downsamplers'), False)
    pairs += _coder('decoder', 'up', 'up_blocks', decoder, ('upsample', 'upsamplers'), video)
    pairs += [('quant_conv.', 'quant_conv.'), ('post_quant_conv.', 'post_quant_conv.')]
    return [*pairs, ('decoder.conv_out.time_mix_conv.', 'decoder.time_conv_out.')]


def _stage_of_sgm(names: Iterable[str]) -> Pairs:
    counts = (_counts(names, rf'{part}\.(\d+)\.block\.(\d+)\.') for part in _SGM_HALVES)
    return _stage(*counts, any('.time_stack.' in name for name in names))


def _stage_of_diffusers(names: Iterable[str]) -> Pairs:
    encoder, decoder = (_counts(names, rf'{part}\.(\d+)\.resnets\.(\d+)\.') for part in _HALVES)
    video = any('.temporal_res_block.' in name for name in names)
    return [
        *_stage(encoder, decoder[::-1], video),
        *(pair for coder in ('encoder', 'decoder') for pair in _old_attention(coder)),
    ]


def _old_attention(coder: str) -> Iterator[tuple[str, str]]:
    # What diffusers called the parts before version 0.18, and its first folders still do.
    for ours, theirs in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('proj_out', 'proj_attn')):
        yield f'{coder}.mid.attn_1.{ours}.', f'{coder}.mid_block.attentions.0.{theirs}.'


_SGM_HALVES = (r'encoder\.down', r'decoder\.up')
_HALVES = (r'encoder\.down_blocks', r'decoder\.up_blocks')

AUTOENCODER = Table(
    of_sgm=_stage_of_sgm,
    of_diffusers=_stage_of_diffusers,
    squeezed=r'(en|de)coder\.mid\.attn_1\.(q|k|v|proj_out)\.weight',
)
