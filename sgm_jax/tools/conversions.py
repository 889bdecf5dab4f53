"""What convert does, from Python: any weights by sgm's names, and workdirs around them."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np
from flax import nnx

from sgm_jax.config import plain
from sgm_jax.engines import DiffusionEngine, Engine, build
from sgm_jax.engines.structure import has_path
from sgm_jax.errors import UserError
from sgm_jax.interop import (
    checkpoint_files,
    diffusers_files,
    hub,
    open_tensors,
    sgm,
    workdir_files,
)
from sgm_jax.interop.tensors import Lazy, Tensors, held, is_float
from sgm_jax.networks.layers import Buffer
from sgm_jax.sampling.recognise import known_config
from sgm_jax.training.workdir import open_workdir

_STAGE = 'first_stage_model.'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Weights to convert.

    Attributes:
      tensors: by sgm's names; path: where they are from.
      base: the file that frozen parts are in; config: of the model, where one is known.
    """

    tensors: Tensors
    path: pathlib.Path
    base: str
    config: ml_collections.ConfigDict | None


def open_source(
    path: str | pathlib.Path,
    *,
    config: ml_collections.ConfigDict | None = None,
    base: str | None = None,
    ema: bool = False,
    raw: bool = False,
) -> Source:
    """A file, a folder or a workdir to convert.

    Args:
      path: a workdir, or anything that `open_tensors` takes.
      config: a workdir has its own.
      base: of a workdir, the file that its frozen parts are taken from; by default its config's.
      ema, raw: averaged weights of a file, trained ones of a workdir.

    Raises:
      UserError: nothing is there, or it is damaged or incomplete.
    """
    path = hub.local(path)
    if not workdir_files.is_workdir(path):
        if raw or base:
            raise UserError(f'{path} is no workdir, to which --{"raw" if raw else "base"} belongs')
        return Source(tensors=open_tensors(path, ema=ema), path=path, base=str(path), config=config)
    if ema:
        raise UserError(f'{path} is a workdir, whose averages are taken anyway; leave --ema out')
    config = workdir_files.read_config(path)
    base = base or config.model.get('checkpoint', '')
    tensors = Tensors(dict(_of_workdir(path, config, base, raw)), str(path))
    return Source(tensors=tensors, path=path, base=base, config=config)


def _of_workdir(
    path: pathlib.Path, config: ml_collections.ConfigDict, base: str, raw: bool
) -> Iterator[tuple[str, Lazy]]:
    """A run's own weights, and the frozen ones from where it has them."""
    engine = build(config)
    _, trained, frozen = engine.structure.abstract
    part = workdir_files.PARAMS if raw else workdir_files.EMA
    module = engine.structure.module()
    nnx.update(module, workdir_files.read_ema(path, trained, part=part))
    apart = []
    for entry in sgm.entries(module):
        if has_path(frozen, entry.path):
            apart.append(entry)
        else:
            yield entry.name, _outward(entry)
    if apart:
        yield from _frozen(path, config, engine, base, apart)


def _outward(entry: sgm.Entry) -> Lazy:
    # A view: a tensor is laid out as PyTorch has it when it is written.
    return held(entry.outward(np.asarray(entry.variable.get_value())))


def _frozen(
    path: pathlib.Path,
    config: ml_collections.ConfigDict,
    engine: Engine,
    base: str,
    apart: list[sgm.Entry],
) -> Iterator[tuple[str, Lazy]]:
    stage = config.model.get('first_stage_checkpoint', '')
    if stage and isinstance(engine, DiffusionEngine):
        for entry in sgm.entries(engine.weights.first_stage(), _STAGE):
            yield entry.name, _outward(entry)
        apart = [entry for entry in apart if not entry.name.startswith(_STAGE)]
    if base and apart:
        tensors = open_source(base).tensors
        shapes = {entry.name: entry.shape for entry in apart}
        found = {name: tensors.shape(name) for name in shapes if name in tensors}
        try:
            sgm.check_names(shapes, found)
        except UserError as error:
            raise UserError(f'{base}: {error}') from error
        yield from ((name, tensors.lazies[name]) for name in shapes)
    elif apart:
        weights = [entry.name for entry in apart if not isinstance(entry.variable, Buffer)]
        if weights:
            raise UserError(
                f'{path} holds what was trained alone; {len(weights)} frozen tensors are missing, such as '
                f'{weights[0]}; give the file that they are in with --base PATH'
            )
        fresh = engine.structure.module()
        nnx.update(fresh, engine.structure.constants())
        names = {entry.name for entry in apart}
        for entry in sgm.entries(fresh):
            if entry.name in names:
                yield entry.name, _outward(entry)


def cast(tensors: Tensors, dtype: np.dtype | None) -> Tensors:
    """The same weights in another type of floats; None keeps each its own.

    Raises:
      UserError: when a tensor is read that has numbers too large for the type.
    """
    if dtype is None:
        return tensors

    def one(name: str, lazy: Lazy) -> Lazy:
        def read() -> np.ndarray:
            array = lazy.read()
            with np.errstate(over='ignore'):
                given = array.astype(dtype)
            if np.isinf(given).any() and not np.isinf(array).any():
                raise UserError(
                    f'{name} has numbers too large for {dtype.name}; use --dtype=bfloat16'
                )
            return given

        same = dtype == lazy.dtype or not is_float(lazy.dtype)
        return lazy if same else Lazy(lazy.shape, dtype, read)

    return Tensors({name: one(name, lazy) for name, lazy in tensors.lazies.items()}, tensors.path)


def check_place(output: pathlib.Path, *, folder: bool) -> None:
    """Raises a UserError if there is something already that a folder, or a file, cannot take the place of."""
    if folder and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f'{output} is there already; choose another --output, or remove it')
    if not folder and output.is_dir():
        raise UserError(f'{output} is a folder; give the name of a file')


def hints_for(source: Source) -> dict[str, Any]:
    """What a diffusers folder is to say of weights that shapes don't.

    By their config; without one what their own folder says, or the config that sample.py takes for them.
    """
    if source.config is None and diffusers_files.is_folder(source.path):
        return diffusers_files.hints_of(source.path)
    return hints_of(source.config or known_config(source.tensors))


def hints_of(config: ml_collections.ConfigDict | None) -> dict[str, Any]:
    """What a diffusers folder says that shapes don't, from a config; nothing without one."""
    if config is None:
        return {}
    model = plain(config.model)
    network, hints = model.get('network', {}), {}
    if network.get('num_head_channels', -1) > 0:
        hints['num_head_channels'] = network['num_head_channels']
    elif network.get('num_heads', -1) > 0:
        hints['num_heads'] = network['num_heads']
    if 'scale_factor' in model:
        hints['scale_factor'] = model['scale_factor']
    frames = model.get('task', {}).get('num_frames')
    if frames:
        hints['num_frames'] = frames
    sample, stage = plain(config.get('sample', {})), model.get('first_stage', {})
    levels = stage.get('ddconfig', {}).get('ch_mult')
    # One number in theirs: of clips, which are wider than high, the published one stays.
    if levels and sample.get('height') and sample['height'] == sample.get('width'):
        hints['sample_size'] = sample['height'] // 2 ** (len(levels) - 1)
    scaling = model.get('denoiser', {}).get('scaling', {}).get('name')
    predicted = {'eps': 'epsilon', 'v': 'v_prediction'}.get(scaling)
    if predicted:
        hints['prediction_type'] = predicted
    for node in model.get('conditioner', ()):
        hints |= _clip_hints(node.get('arch'))
    return hints


def _clip_hints(arch: Any) -> dict[str, int]:
    if not isinstance(arch, Mapping):
        return {}
    vision, text = arch.get('vision_cfg', {}), arch.get('text_cfg', {})
    hints = {'vision_head_width': vision['head_width']} if 'head_width' in vision else {}
    if text.get('layers') and text.get('heads'):
        hints['text_head_width'] = text['width'] // text['heads']
    return hints


def write_workdir(workdir: pathlib.Path, source: Source) -> None:
    """A folder that sample.py reads and train.py goes on in: a config, and a checkpoint of its weights.

    Raises:
      UserError: there is no config, the weights do not fit it, or the folder cannot be written.
    """
    if source.config is None:
        raise UserError('a workdir needs a config: give --config FILE.py[:VARIANT]')
    config = ml_collections.ConfigDict(source.config.to_dict())
    if config.model.name != 'diffusion':
        raise UserError(
            f'the config is of {config.model.name!r}; a workdir is written for a diffusion model. To train '
            'a first stage from a file, name it as model.checkpoint'
        )
    config.model.update(checkpoint=source.base, from_scratch=False)
    engine = build(config)
    frozen = engine.structure.abstract[2]
    module = checkpoint_files.fill(
        engine.structure.module(),
        source.tensors,
        str(source.path),
        only=lambda path: not has_path(frozen, path),
    )
    weights = engine.structure.split(module)[1]
    open_workdir(workdir, config)
    workdir_files.write_weights(workdir, weights)
