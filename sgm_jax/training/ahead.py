"""Steps for sizes of batch that are still to come, compiled while the first ones run."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax

from sgm_jax.parallel import agreement
from sgm_jax.training.step import Step

LOG = logging.getLogger(__name__)
Shapes = Any


class StepsAhead:
    """A context: a step that is called as any other, with those of known sizes compiled in the background.

    One size after the other: a compiler keeps the host's cores busy. A size that has not been announced is
    compiled when it comes, as without this. With several hosts each new size waits until all have its step.
    """

    def __init__(self, step: Step):
        self._step = step
        self._made: dict[tuple, futures.Future] = {}
        self._used: set[tuple] = set()
        self._worker = futures.ThreadPoolExecutor(1, thread_name_prefix='compiler')

    def __enter__(self) -> 'StepsAhead':
        return self

    def __exit__(self, *_: object) -> None:
        # The one that is being compiled cannot be stopped.
        self._worker.shutdown(wait=True, cancel_futures=True)

    def announce(
        self, turn: str, state: Shapes, frozen: Shapes, batch: Shapes, key: Shapes
    ) -> None:
        """Such a step will come: arrays, or shapes with shardings. The first announced is the first made."""
        place = sized(turn, batch)
        if place not in self._made:
            shapes = jax.tree.map(_shape, (state, frozen, batch, key))
            self._made[place] = self._worker.submit(self._compile, turn, *shapes)

    def __call__(self, turn: str, state: Any, frozen: Any, batch: Mapping, key: jax.Array) -> Any:
        """As `make_step`'s."""
        place = sized(turn, batch)
        if place not in self._made:
            if jax.process_count() == 1:
                return self._step(turn, state, frozen, batch, key)
            self.announce(turn, state, frozen, batch, key)
        made = self._made[place].result()
        if place not in self._used:
            self._used.add(place)
            if jax.process_count() > 1:
                # The first collective does not wait as long as another host may compile.
                agreement.wait_for_all('compiled')
        return made(state, frozen, batch, key)

    def _compile(self, turn: str, *shapes: Shapes) -> Any:
        made = self._step.trace(turn, *shapes).lower().compile()
        largest = max((x.shape for x in shapes[2].values()), key=math.prod)
        LOG.info('compiled the step of batches of %s', 'x'.join(map(str, largest)))
        return made


def resized(
    batch: Mapping[str, jax.Array], sizes: Sequence[tuple[int, ...]]
) -> Iterator[dict[str, Shapes]]:
    """Shapes of batches as this one, of examples of other sizes: of a bucket the size is all that differs."""
    jpg = batch['jpg']
    for size in sizes:
        shape = (len(jpg), *size, jpg.shape[-1])
        yield {**batch, 'jpg': jax.ShapeDtypeStruct(shape, jpg.dtype, sharding=jpg.sharding)}


def sized(turn: str, batch: Mapping[str, Any]) -> tuple:
    """What a compiled step is for: a turn, and the shapes of a batch."""
    return turn, *sorted((name, tuple(x.shape)) for name, x in batch.items())


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
