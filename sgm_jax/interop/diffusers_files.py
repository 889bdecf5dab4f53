"""Folders of diffusers, read and written by sgm's names.

A folder holds one folder for each part (unet, vae, text_encoder, ...) with a config.json and the weights.
What of an sgm checkpoint diffusers has no place for lies beside them in sgm_extra.safetensors, which
diffusers does not look at: so a checkpoint comes back from a folder bit for bit.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop import clip_vocabulary, diffusers_configs, safetensors_files, torch_files
from sgm_jax.interop.diffusers_configs import Hints
from sgm_jax.interop.diffusers_parts import Layout, Part, constants, layout_of
from sgm_jax.interop.hub import EXTRA
from sgm_jax.interop.tensors import Lazy, Tensors

LOG = logging.getLogger(__name__)
INDEX, CONFIG = 'model_index.json', 'config.json'
_STEMS = ('diffusion_pytorch_model', 'model', 'pytorch_model')
# Those without a variant first.
_VARIANTS = ('', '.fp16', '.bf16', '.non_ema')


def is_folder(path: str | pathlib.Path) -> bool:
    """Whether a path is a folder of diffusers."""
    return (pathlib.Path(path) / INDEX).is_file()


def read(folder: str | pathlib.Path) -> Tensors:
    """A folder's tensors by sgm's names.

    Raises:
      UserError: a part is missing, damaged, or none that is known.
    """
    folder = pathlib.Path(folder)
    layout = _layout(folder)
    found: dict[str, Lazy] = {}
    for part in layout.parts:
        try:
            inner = {k: x for k, x in _weights(folder / part.folder).items() if not _constant(k)}
            found |= part.given(part.table.inward(inner))
        except UserError as error:
            path = str(folder / part.folder)
            raise error if path in str(error) else UserError(f'{path}: {error}') from error
    extra = folder / EXTRA
    if extra.is_file():
        return Tensors(found | safetensors_files.read(extra).lazies, str(folder))
    try:
        return Tensors(found | constants(layout, found, str(folder)), str(folder))
    except KeyError as error:
        raise UserError(f'{folder} has no tensor for {error.args[0]}') from error


def hints_of(folder: str | pathlib.Path) -> dict[str, Any]:
    """What a folder's own files say that shapes don't, as `Hints`."""
    folder, hints = pathlib.Path(folder), {}
    for name, file, field in (
        ('prediction_type', 'scheduler/scheduler_config.json', 'prediction_type'),
        ('sample_size', f'unet/{CONFIG}', 'sample_size'),
        ('num_frames', f'unet/{CONFIG}', 'num_frames'),
        ('scale_factor', f'vae/{CONFIG}', 'scaling_factor'),
    ):
        value = _json(folder / file).get(field) if (folder / file).is_file() else None
        if value is not None:
            hints[name] = value
    return hints


def _constant(name: str) -> bool:
    return name.endswith('position_ids')


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        node = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}); download it again') from error
    if not isinstance(node, dict):
        raise UserError(f'{path} holds no fields; download it again')
    return node


def _layout(folder: pathlib.Path) -> Layout:
    index = _json(folder / INDEX)
    has = lambda name: isinstance(index.get(name), list) and bool(index[name][0])
    for name in ('unet', 'vae'):
        if not has(name):
            raise UserError(
                f'{folder} is a {index.get("_class_name")}, without {name}: no model of sgm'
            )
    network = _json(folder / 'unet' / CONFIG).get('_class_name')
    if network == 'UNetSpatioTemporalConditionModel':
        stage = _json(folder / 'vae' / CONFIG).get('_class_name')
        return Layout('svd', stage == 'AutoencoderKLTemporalDecoder')
    if network != 'UNet2DConditionModel':
        raise UserError(f'{folder} has a {network} as its network: no model of sgm')
    if has('text_encoder_2'):
        return Layout('sdxl' if has('text_encoder') else 'refiner')
    if not has('text_encoder'):
        raise UserError(f'{folder} has no text encoder: no model of sgm')
    activation = _json(folder / 'text_encoder' / CONFIG).get('hidden_act', 'quick_gelu')
    return Layout('sd1' if activation == 'quick_gelu' else 'sd2')


def _weights(folder: pathlib.Path) -> dict[str, Lazy]:
    """The tensors of one part under diffusers' names."""
    for variant in _VARIANTS:
        for stem in _STEMS:
            whole = folder / f'{stem}{variant}.safetensors'
            if whole.is_file():
                return safetensors_files.read(whole).lazies
            shards = (
                folder / f'{stem}.safetensors.index{variant}.json',
                folder / f'{stem}{variant}.safetensors.index.json',
            )
            for index in filter(pathlib.Path.is_file, shards):
                return _shards(index)
    for variant in _VARIANTS:
        for stem in _STEMS:
            file = folder / f'{stem}{variant}.bin'
            if file.is_file():
                tree = torch_files.scan(file)
                if not isinstance(tree, dict):
                    raise UserError(f'{file} holds no state dict, tensors by name')
                return {k: x for k, x in tree.items() if isinstance(x, Lazy)}
    raise UserError(f'{folder} has no weights ({_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors)')


def _shards(index: pathlib.Path) -> dict[str, Lazy]:
    placed = _json(index).get('weight_map')
    if not isinstance(placed, dict):
        raise UserError(f'{index} has no weight_map; download it again')
    # Of this folder, whatever the file says.
    placed = {name: pathlib.PurePath(str(file)).name for name, file in placed.items()}
    files = {name: safetensors_files.read(index.parent / name) for name in set(placed.values())}
    lost = [name for name, file in placed.items() if name not in files[file]]
    if lost:
        raise UserError(f'{index.parent / placed[lost[0]]} has no {lost[0]}; download it again')
    return {name: files[file].lazies[name] for name, file in placed.items()}


def write(
    folder: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    *,
    hints: Hints | Mapping[str, Any] | None = None,
) -> None:
    """An sgm checkpoint as a folder of diffusers, written whole or not at all, one tensor at a time.

    Args:
      folder: a new one, or an empty one.
      tensors: the whole model's, by sgm's names; of `open_tensors`, or any state dict.
      hints: what shapes don't tell (diffusers_configs.Hints); by default the published models'.

    Raises:
      UserError: diffusers has no such model, or the folder is not empty or cannot be written.
    """
    target = pathlib.Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f'{target} is there already; choose another --output, or remove it')
    tensors = Tensors.of(tensors)
    layout, plans, extra = plan(tensors, hints)
    # A sibling, so that its new name is all that it still needs.
    new = target.with_name(f'.{target.name}.part')
    try:
        shutil.rmtree(new, ignore_errors=True)
        for part, found, config in plans:
            _write_part(new / part.folder, part, found, config)
        safetensors_files.write(new / EXTRA, Tensors(extra))
        if layout.kind == 'svd':
            _write_json(
                new / 'feature_extractor' / 'preprocessor_config.json', _preprocessor(plans)
            )
        schedule = diffusers_configs.scheduler(layout, _checked(hints))
        _write_json(new / 'scheduler' / 'scheduler_config.json', schedule)
        tokenizers = _write_tokenizers(new, plans)
        _write_json(new / INDEX, diffusers_configs.model_index(layout, tokenizers))
        if target.exists():
            target.rmdir()
        new.replace(target)
    except OSError as error:
        raise UserError(
            f'{target} could not be written ({error.strerror or error}); free some space, or choose '
            'another place'
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def plan(
    tensors: Tensors, hints: Hints | Mapping[str, Any] | None = None
) -> tuple[Layout, list[tuple[Part, dict[str, Lazy], dict[str, Any]]], dict[str, Lazy]]:
    """(the layout, for each part its tensors and its config.json, what diffusers has no place for)."""
    hints = _checked(hints)
    layout = layout_of(tensors)
    plans, extra = [], dict(tensors.lazies)
    pooled = max(
        (x.shape[-1] for k, x in extra.items() if k.endswith('.model.text_projection')), default=0
    )
    for part in layout.parts:
        taken, names = part.taken(tensors.lazies)
        found, spare = part.table.outward(taken)
        for name in names.keys() - spare.keys():
            del extra[names[name]]
        shapes = {name: lazy.shape for name, lazy in found.items()}
        try:
            config = diffusers_configs.component(layout, part, shapes, hints, pooled=pooled)
        except (KeyError, IndexError) as error:
            raise UserError(
                f'{tensors.path or "the model"}: no tensor {error} for {part.folder}'
            ) from error
        plans.append((part, found, config))
    return layout, plans, extra


def _checked(hints: Hints | Mapping[str, Any] | None) -> Hints:
    if isinstance(hints, Hints):
        return hints
    hints = hints or {}
    known = {field.name for field in dataclasses.fields(Hints)}
    for name in hints:
        if name not in known:
            raise UserError(f'hints: unknown key {name!r}; known keys: {", ".join(sorted(known))}')
    return Hints(**hints)


def _write_part(
    folder: pathlib.Path, part: Part, found: Mapping[str, Lazy], config: Mapping[str, Any]
) -> None:
    stem = 'model' if part.kind.startswith('CLIP') else 'diffusion_pytorch_model'
    safetensors_files.write(folder / f'{stem}.safetensors', Tensors(found))
    _write_json(folder / CONFIG, config)


def _write_tokenizers(folder: pathlib.Path, plans: list) -> list[str]:
    """The tokenizers of the text encoders that know CLIP's words, and where they are."""
    written = []
    for part, _, config in plans:
        if config.get('vocab_size') != clip_vocabulary.WORDS:
            continue
        # As the published folders have it; open_clip's own tokenizer fills up with zeros.
        padding = clip_vocabulary.END if config['hidden_act'] == 'quick_gelu' else '!'
        files = clip_vocabulary.tokenizer_files(padding)
        if files is None:
            LOG.warning(
                '%s: no tokenizer was written, for the package instant-clip-tokenizer is not installed; give '
                'tokenizer= to from_pretrained',
                part.folder,
            )
            continue
        name = part.folder.replace('text_encoder', 'tokenizer')
        for file, text in files.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / file).write_text(text, encoding='utf-8')
        written.append(name)
    return written


def _preprocessor(plans: list) -> dict[str, Any]:
    size = next(config['image_size'] for part, _, config in plans if part.folder == 'image_encoder')
    both = {'height': size, 'width': size}
    return {**diffusers_configs.PREPROCESSOR, 'crop_size': both, 'size': {'shortest_edge': size}}


def _write_json(path: pathlib.Path, node: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node, indent=2) + '\n')
