"""Shapes of what a config's training and sampling are given, without its data."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from sgm_jax.config import plain
from sgm_jax.data.bucket_plan import bucket_sizes, clip_sizes
from sgm_jax.engines import Engine
from sgm_jax.errors import UserError
from sgm_jax.parallel import mesh as meshes

Shape = jax.ShapeDtypeStruct


def training_batch(
    engine: Engine, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, Shape]:
    """A batch as it goes to the devices; of a config with buckets, of the largest.

    Of cached latents the first record is read.

    Raises:
      UserError: `context` does not divide the rows of a bucket's latents, or there is no cache.
    """
    node, count = _source(config), config.train.batch_size
    if node.get('name') == 'cached_latents':
        found = [_prepared(engine, _cached(node), count)]
    else:
        found = [_batch(engine, size, count) for size in _buckets(node) or [_size(config)]]
    for shapes in found:
        meshes.check_rows(engine.latent_rows(shapes), mesh)
    return max(found, key=lambda shapes: sum(math.prod(x.shape) for x in shapes.values()))


def sampling_batch(
    engine: Engine, config: ml_collections.ConfigDict, count: int
) -> dict[str, Shape]:
    """What `count` samples are made from."""
    return _batch(engine, _size(config), count)


def _source(config: ml_collections.ConfigDict) -> Mapping[str, Any]:
    node = config.data
    while 'sources' in node:
        node = node.sources[0]
    return node


def _size(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """(height, width) of pictures, (frames, height, width) of clips."""
    node = _source(config)
    sizes = node if 'height' in node else config.get('sample', {})
    if 'height' not in sizes:
        raise UserError(
            'config.data has no height and width; give --config.sample.height and .width'
        )
    frames = node.get('num_frames', None)
    return (*((frames,) if frames else ()), sizes['height'], sizes['width'])


def _buckets(node: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    buckets = plain(node.get('buckets', ()))
    if 'num_frames' in node:
        return clip_sizes(buckets)
    base = node.get('height', 0), node.get('width', 0)
    return bucket_sizes(buckets, base, node.get('bucket_multiple', 64))


def _cached(node: Mapping[str, Any]) -> dict[str, Any]:
    from sgm_jax.data.cached_latents import CachedLatents

    return CachedLatents(path=node['path']).record(0)


def _batch(engine: Engine, size: tuple[int, ...], count: int) -> dict[str, Shape]:
    shape = getattr(getattr(engine, 'structure', None), 'shape', None)
    channels = 3
    if getattr(shape, 'first_stage', 0) is None:
        channels = shape.network.frame.out_conv.out_features
    record = {'jpg': np.broadcast_to(np.float32(0), (*size, channels))}
    reads = getattr(getattr(shape, 'conditioner', None), 'reads', ())
    made = getattr(getattr(engine, 'task', None), 'makes', ())
    record |= {key: _entry(key) for key in sorted(set(reads) - set(made))}
    return _prepared(engine, record, count)


def _entry(key: str) -> Any:
    if key == 'txt':
        return 'a picture'
    if key == 'cls':
        return np.int32(0)
    return np.zeros((2,) if key.endswith(('_as_tuple', '_top_left')) else (), np.float32)


def _prepared(engine: Engine, record: Mapping[str, Any], count: int) -> dict[str, Shape]:
    one = engine.prepare({key: np.asarray(value)[None] for key, value in record.items()})
    return {k: Shape((count, *np.shape(v)[1:]), np.asarray(v).dtype) for k, v in one.items()}
