"""Where a model's weights come from, besides training: files, read once, at the start of a run."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from sgm_jax.engines.first_stages import build_first_stage
from sgm_jax.engines.structure import PyTree, Structure, has_path
from sgm_jax.errors import UserError
from sgm_jax.interop import checkpoint_files, to_sgm, workdir_files
from sgm_jax.interop.sgm import entries
from sgm_jax.networks.layers import Buffer, Keys, Statistic

LOG = logging.getLogger(__name__)
FIRST_STAGE = 'first_stage'
# Where a weight goes as soon as it is read: `sgm.load`'s place.
Place = Callable[[Any, np.ndarray], Any]
_PREFIX = 'first_stage_model.'
# Of a temporal decoder, what a decoder of pictures has not.
_OVER_TIME = re.compile(r'time_stack|time_mix|mix_factor|video_time_embed')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """The files of a diffusion model.

    Attributes:
      checkpoint: of the whole model, as `interop.open_tensors` takes it, or a workdir in which one was
        trained, of which the averaged weights are taken ('' for none).
      first_stage_checkpoint: a workdir in which the first stage was trained, or an sgm checkpoint that
        holds it ('' for the one above).
      from_scratch: whether the network starts at random even though there is a checkpoint.
    """

    structure: Structure
    checkpoint: str = ''
    first_stage_checkpoint: str = ''
    from_scratch: bool = False

    def all(self, place: Place) -> tuple[PyTree, PyTree]:
        """The trained tree and the frozen one, where `place` puts them.

        Raises:
          UserError: a part with weights has no file, or the file does not fit.
        """
        in_one_file = self.checkpoint and not workdir_files.is_workdir(self.checkpoint)
        if in_one_file and not (self.first_stage_checkpoint or self.from_scratch):
            return self.structure.split(self._filled(lambda path: True, place))[1:]
        return self.trainable(place), self.frozen(place)

    def trainable(self, place: Place | None = None) -> PyTree | None:
        """The trained tree of the checkpoint, or None; on the host, unless `place` puts it elsewhere."""
        if not self.checkpoint or self.from_scratch:
            return None
        return self._read(trained=True, place=place)

    def frozen(self, place: Place | None = None) -> PyTree:
        """The frozen tree; on the host, unless `place` puts it elsewhere.

        Raises:
          UserError: a part with weights has no file, or the file does not fit.
        """
        wanted = self.structure.abstract[2]
        found = {}
        if self.first_stage_checkpoint and wanted.get(FIRST_STAGE):
            stage = self.first_stage()
            for entry in entries(stage, path=(FIRST_STAGE,)) if place else ():
                entry.variable.set_value(place(entry, np.asarray(entry.variable.get_value())))
            found[FIRST_STAGE] = nnx.to_pure_dict(nnx.state(stage))
        missing = {part: tree for part, tree in wanted.items() if part not in found}
        if self.checkpoint and jax.tree.leaves(missing):
            whole = self._read(trained=False, place=place)
            return {part: found.get(part, whole[part]) for part in wanted}
        without_file = [part for part in missing if part in self._parts_with_weights()]
        if without_file:
            raise UserError(
                f'the frozen parts ({", ".join(sorted(without_file))}) need weights; give a published '
                'checkpoint with --config.model.checkpoint=FILE.safetensors, or for a first stage alone '
                '--config.model.first_stage_checkpoint=PATH'
            )
        if jax.tree.leaves(missing):
            # Only the constants of 'fixed' blends are left.
            fresh = self.structure.constants()
            missing = {part: fresh[part] for part in missing}
        return {**missing, **found}

    def _read(self, *, trained: bool, place: Place | None) -> PyTree:
        if workdir_files.is_workdir(self.checkpoint):
            return self._of_workdir(trained, place)
        # One half at a time: the other is not even read.
        frozen = self.structure.abstract[2]
        filled = self._filled(lambda path: has_path(frozen, path) != trained, place)
        return self.structure.split(filled)[1 if trained else 2]

    def _filled(self, only: Callable[[tuple], bool], place: Place | None) -> nnx.Module:
        options = {'place': place} if place else {}
        return checkpoint_files.read(self.checkpoint, self.structure.module(), only=only, **options)

    def _of_workdir(self, trained: bool, place: Place | None) -> PyTree:
        if trained:
            return workdir_files.read_ema(self.checkpoint, self.structure.abstract[1])
        # Frozen parts are where that run had them from.
        node = workdir_files.read_config(self.checkpoint).model
        keys = ('checkpoint', 'first_stage_checkpoint')
        files = {key: node.get(key, '') for key in keys}
        if self.first_stage_checkpoint:
            files['first_stage_checkpoint'] = self.first_stage_checkpoint
        return dataclasses.replace(self, **files).frozen(place)

    def first_stage(self) -> nnx.Module:
        """What `first_stage_checkpoint` holds, as the model's first stage; on the host."""
        stage = Structure(build=lambda keys: self.structure.build(keys).first_stage)
        return first_stage(self.first_stage_checkpoint, stage)

    def _parts_with_weights(self) -> set[str]:
        module = self.structure.shape
        return {
            path[0]
            for path, variable in nnx.to_flat_state(nnx.state(module))
            if not isinstance(variable, Buffer) and has_path(self.structure.abstract[2], path)
        }


def first_stage(path: str, structure: Structure) -> nnx.Module:
    """The autoencoder of a workdir in which one was trained, or of an sgm checkpoint that holds one.

    Where the decoder works on clips and the file has one of pictures, what mixes time starts fresh.

    Raises:
      UserError: there is no such file, or it does not fit.
    """
    if workdir_files.is_workdir(path):
        tensors, prefix = to_sgm(_trained(path)), ''
    else:
        tensors = checkpoint_files.open_tensors(path)
        prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ''
    fresh = {}
    if not any(_OVER_TIME.search(name) for name in tensors):
        fresh = {k: v for k, v in _fresh(structure).items() if _OVER_TIME.search(k)}
    if fresh:
        LOG.info('%s has a decoder of pictures: %d tensors over time start fresh', path, len(fresh))
        given = {name: tensors[name] for name in tensors if name.startswith(prefix)}
        tensors = {**{prefix + name: value for name, value in fresh.items()}, **given}
    return checkpoint_files.fill(structure.module(), tensors, path, prefix=prefix)


def _trained(workdir: str) -> nnx.Module:
    model = workdir_files.read_config(workdir).model
    structure = first_stage_structure(model.first_stage, model.get('trained', ()))
    graphdef, params, _ = structure.abstract
    trained = workdir_files.read_ema(workdir, params)
    return nnx.merge(graphdef, trained, untrained(structure, model.get('checkpoint', '')))


def first_stage_structure(node: Mapping, trained: Sequence[str] = ()) -> Structure:
    """Of a first stage that is trained, or whose parameters are that these patterns begin."""
    patterns = [re.compile(pattern) for pattern in trained]
    dotted = lambda path: '.'.join(map(str, path))
    return Structure(
        build=lambda keys: build_first_stage(node, keys),
        trainable=lambda path: not patterns or any(p.match(dotted(path)) for p in patterns),
        # A codebook that is a running average is kept where the parameters are.
        kinds=(nnx.Param, Statistic),
    )


def untrained(structure: Structure, checkpoint: str) -> PyTree:
    """The part of a first stage that its own training leaves as it was in `checkpoint`.

    Raises:
      UserError: there are weights in that part, and there is no such file.
    """
    wanted = structure.abstract[2]
    if not jax.tree.leaves(wanted):
        return wanted
    if checkpoint:
        return structure.split(first_stage(checkpoint, structure))[2]
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(structure.shape, nnx.Param))]
    if not all(map(structure.trainable, paths)):
        raise UserError(
            'model.trained leaves out a part that needs weights; give --config.model.checkpoint=PATH'
        )
    return structure.constants()


def _fresh(structure: Structure) -> dict[str, np.ndarray]:
    module = structure.module()
    nnx.update(module, jax.jit(lambda: nnx.state(structure.build(Keys(0))))())
    return to_sgm(module)
