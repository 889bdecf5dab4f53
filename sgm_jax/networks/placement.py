"""How activations lie over devices: networks say what an axis is, whoever compiles says where it goes.

    with placement.over(mesh, batch=('data', 'fsdp'), context='context', weights=by_shape):
        out = network(x, ...)          # inside jax.jit, while it is traced

Examples are split over the axes `batch`, and the pixels of each over `context`: rows of pixels where they
divide, else columns. Frames are never split, for 14 or 25 of them divide by nothing that meshes are made of.
So convolutions exchange the rows at their edges, attention over space gathers keys and values, and all that
works over time finds its frames in one place. Weights are gathered where a layer uses them, in the dtype
that it computes in, and their gradients scattered: left to itself, XLA gathers activations where these are
smaller, and then exchanges all that comes of them. Outside of `over` nothing here does anything.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# What gathered weights are called; see `networks.remat`.
WEIGHTS = 'weights'


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, its axes for examples and for the pixels of one, and how a weight of a shape lies."""

    mesh: Mesh
    batch: tuple[str, ...]
    context: str
    weights: Callable[[Sequence[int]], NamedSharding] | None = None

    def examples(self, count: int) -> tuple[str, ...] | None:
        """The axes of the mesh that `count` examples are split over."""
        size = math.prod(self.mesh.shape[axis] for axis in self.batch)
        return self.batch if self.batch and count % size == 0 else None

    def pixels(self, count: int) -> str | None:
        """The axis of the mesh that `count` rows, columns or pixels are split over."""
        return self.context if count % self.mesh.shape[self.context] == 0 else None

    def scattered(self, shape: Sequence[int], over: Sequence[str]) -> list[tuple[str, ...] | None]:
        """The axes of the mesh along each axis of a weight, of those that are all among `over`."""
        if self.weights is None:
            return [None] * len(shape)
        spec = [(x,) if isinstance(x, str) else x for x in self.weights(shape).spec]
        return [names if names and set(names) <= set(over) else None for names in spec]

    def constrain(self, x: jax.Array, *axes: Any) -> jax.Array:
        spec = PartitionSpec(*axes, *(None,) * (x.ndim - len(axes)))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


_ACTIVE: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    'placement', default=None
)


@contextlib.contextmanager
def over(
    mesh: Mesh,
    *,
    batch: tuple[str, ...],
    context: str,
    weights: Callable[[Sequence[int]], NamedSharding] | None = None,
) -> Iterator[None]:
    """What is traced inside is laid over the mesh; `weights` says how those of a shape come."""
    found = Placement(mesh, batch, context, weights) if mesh.size > 1 else None
    token = _ACTIVE.set(found)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def weights_are_split() -> bool:
    """Whether layers gather what they multiply by."""
    active = _ACTIVE.get()
    return active is not None and active.weights is not None


def whole(weight: jax.Array) -> jax.Array:
    """A layer's weight, in the dtype that it computes in, gathered; its gradient is scattered.

    It carries the name WEIGHTS, by which a backward pass knows to gather it again instead of keeping it.
    """
    if not weights_are_split():
        return weight
    active = _ACTIVE.get()
    split = active.weights(weight.shape)
    if split.is_fully_replicated:
        return weight
    return checkpoint_name(
        _gathered(weight, split, NamedSharding(active.mesh, PartitionSpec())), WEIGHTS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(weight, split, whole):
    # Split first, or what is gathered could be the weight before it was rounded, twice as large.
    weight = jax.lax.with_sharding_constraint(weight, split)
    return jax.lax.with_sharding_constraint(weight, whole)


def _gathered_forward(weight, split, whole):
    return _gathered(weight, split, whole), None


def _gathered_gradient(split, whole, kept, g):
    return (jax.lax.with_sharding_constraint(g, split),)


_gathered.defvjp(_gathered_forward, _gathered_gradient)


def shards() -> int:
    """Into how many parts examples are split."""
    active = _ACTIVE.get()
    return 1 if active is None else math.prod(active.mesh.shape[axis] for axis in active.batch)


def feature_map(x: jax.Array) -> jax.Array:
    """The same (n, h, w, c), or (n, ..., c) of other dimensions, laid over the devices."""
    active = _ACTIVE.get()
    if active is None:
        return x
    if x.ndim != 4:
        return active.constrain(x, active.examples(len(x)))
    rows = active.pixels(x.shape[1])
    columns = None if rows else active.pixels(x.shape[2])
    return active.constrain(x, active.examples(len(x)), rows, columns)


def tokens(x: jax.Array) -> jax.Array:
    """The same (n, pixels, c), or (b, pixels, t, c), laid over the devices."""
    active = _ACTIVE.get()
    if active is None:
        return x
    return active.constrain(x, active.examples(len(x)), active.pixels(x.shape[1]))


def flatten_pixels(x: jax.Array) -> jax.Array:
    """(..., h, w, c) to (..., h * w, c), in an order in which a split of rows or columns stays one."""
    x = jnp.swapaxes(x, -3, -2) if _by_columns(*x.shape[-3:-1]) else x
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def unflatten_pixels(x: jax.Array, height: int, width: int) -> jax.Array:
    """The inverse of flatten_pixels."""
    if _by_columns(height, width):
        x = x.reshape(*x.shape[:-2], width, height, x.shape[-1])
        return jnp.swapaxes(x, -3, -2)
    return x.reshape(*x.shape[:-2], height, width, x.shape[-1])


def _by_columns(height: int, width: int) -> bool:
    active = _ACTIVE.get()
    return active is not None and not active.pixels(height) and bool(active.pixels(width))


def by_device(
    function: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, *, whole: bool
) -> jax.Array:
    """`function(q, k, v)`, an attention, on each device's own examples and queries.

    Kernels and loops over heads are nothing that XLA can split by itself.

    Args:
      q, k, v: (b, n, heads, d), whose queries are split over `context`, or (b, pixels, n, heads, d), whose
        pixels are; keys and values of the former are gathered.
      whole: that queries must stay together (the function knows them by their place).
    """
    active = _ACTIVE.get()
    if active is None:
        return function(q, k, v)
    examples = active.examples(len(q))
    split = None if whole else active.pixels(q.shape[1])
    queries = PartitionSpec(examples, split)
    keys = queries if q.ndim == 5 else PartitionSpec(examples)
    mapped = jax.shard_map(
        function,
        mesh=active.mesh,
        in_specs=(queries, keys, keys),
        out_specs=queries,
        check_vma=False,
    )
    return mapped(q, k, v)


def pixels_are_split() -> bool:
    """Whether the pixels of an example lie on several devices."""
    active = _ACTIVE.get()
    return active is not None and active.mesh.shape[active.context] > 1


def examples_per_device(count: int) -> int:
    """How many of `count` examples a device has."""
    active = _ACTIVE.get()
    return count // shards() if active is not None and active.examples(count) else count


def by_example(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    other: jax.Array,
    *,
    pixels: int | None = None,
    summed: bool = False,
) -> jax.Array:
    """`function(x, other)` on each device's own examples.

    Args:
      x: (n, ...); pixels: the axis of its pixels, where they may be split too.
      other: a weight, which every device has; the result is as x. Or, with `summed`, as x: the results of all
        devices are added up, and laid as a weight is.
    """
    active = _ACTIVE.get()
    if active is None:
        return function(x, other)
    axes: list[Any] = [active.examples(len(x)), *(None,) * (x.ndim - 1)]
    if pixels is not None:
        axes[pixels] = active.pixels(x.shape[pixels])
    own, every = PartitionSpec(*axes), PartitionSpec()
    if not summed:
        specs = dict(in_specs=(own, every), out_specs=own)
        return jax.shard_map(function, mesh=active.mesh, check_vma=False, **specs)(x, other)
    spread = tuple(jax.tree.leaves(axes))
    laid = active.scattered(jax.eval_shape(function, x, other).shape, spread)

    def add(x, other):
        found, rest = function(x, other), spread
        for place, names in enumerate(laid):
            if names:
                found = jax.lax.psum_scatter(found, names, scatter_dimension=place, tiled=True)
                rest = tuple(axis for axis in rest if axis not in names)
        return jax.lax.psum(found, rest) if rest else found

    specs = dict(in_specs=(own, own), out_specs=PartitionSpec(*laid))
    return jax.shard_map(add, mesh=active.mesh, check_vma=False, **specs)(x, other)


def in_chunks(function: Callable[[jax.Array], Any], x: jax.Array, chunk: int) -> Any:
    """`function` of (n, ...), for `chunk` examples of every device at a time; all at once with 0.

    A loop over the examples themselves would run over what is split, and gather it.
    """
    parts = shards() if len(x) % shards() == 0 else 1
    rounds, rest = divmod(len(x) // parts, max(chunk, 1))
    if not chunk or rounds <= 1 or rest:
        return function(x)
    turns = x.reshape(parts, rounds, chunk, *x.shape[1:]).swapaxes(0, 1)

    def one(part):
        out = function(feature_map(part.reshape(parts * chunk, *x.shape[1:])))
        return jax.tree.map(lambda y: y.reshape(parts, chunk, *y.shape[1:]), out)

    found = jax.lax.map(one, turns)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(len(x), *y.shape[3:]), found)
