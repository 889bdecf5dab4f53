"""What of a diffusion model's work on an example can be done once: its frozen encoders, and who they are."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.conditioning.conditioner import GeneralConditioner
from sgm_jax.engines.structure import PyTree, Structure
from sgm_jax.engines.tasks import Task
from sgm_jax.networks.layers import Buffer
from sgm_jax.parallel.compiler import jit

# Of large files, so many bytes at either end are looked at.
_LOOKED_AT = 2**20


def frozen_embedders(structure: Structure, task: Task) -> tuple[int, ...]:
    """The embedders whose outputs can be kept: with weights, none of them trained, and nothing drawn."""
    drawn = set(task.makes) - set(task.fixed)
    conditioner: GeneralConditioner = structure.shape.conditioner
    found = []
    for index, (embedder, slot) in enumerate(
        zip(conditioner.embedders, conditioner.slots, strict=True)
    ):
        variables = [v for _, v in nnx.to_flat_state(nnx.state(embedder))]
        weights = any(not isinstance(variable, Buffer) for variable in variables)
        draws = getattr(embedder, 'draws', False) or drawn & set(slot.keys)
        if weights and not slot.is_trainable and not draws:
            found.append(index)
    return tuple(found)


def make_encoder(
    structure: Structure, task: Task
) -> Callable[[PyTree, Mapping[str, Any]], dict[str, Any]]:
    """A compiled function from (frozen parameters, batch) to moments and embeddings.

    The batch is of pictures or clips, with tokens in place of prompts; without `jpg` there are no moments.
    """
    indices = frozen_embedders(structure, task)

    def encode(frozen: PyTree, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        # The trained parts are never used, and never made: the compiler leaves them out.
        untrained = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure.abstract[1])
        model = structure.merge(untrained, frozen)
        found = {}
        if model.first_stage is not None and 'jpg' in batch:
            pictures, told = task.training_batch(batch, jax.random.key(0))
            moments = model.moments(pictures)
            found['moments'] = moments.reshape(*batch['jpg'].shape[:-3], *moments.shape[1:])
            # What is drawn in `told` is read by none of these.
            batch = told
        return found | model.conditioner.embeddings(batch, indices)

    return jit(encode)


def fingerprint(nodes: Any, *files: str) -> str:
    """Of encoders: their config, and the files of their weights by content, wherever they are.

    Of a file its length and both ends count; of a folder (a workdir), the names and lengths of all its files
    and the content of small ones.
    """
    found = hashlib.blake2b(json.dumps(nodes, sort_keys=True, default=str).encode(), digest_size=16)
    for name in files:
        place = pathlib.Path(name).expanduser()
        if not name or not place.exists():
            found.update(name.encode())
            continue
        for file in sorted(place.rglob('*')) if place.is_dir() else [place]:
            if not file.is_file():
                continue
            size = file.stat().st_size
            relative = str(file.relative_to(place)) if place.is_dir() else ''
            found.update(f'{relative}|{size}|'.encode())
            with file.open('rb') as data:
                found.update(data.read(_LOOKED_AT))
                data.seek(max(0, size - _LOOKED_AT))
                found.update(data.read())
    return found.hexdigest()
