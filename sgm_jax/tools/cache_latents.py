"""Runs a model's frozen encoders over its pictures or clips once, for training to read what they made.

python -m sgm_jax.tools.cache_latents --config configs/sdxl_base.py --output /data/sdxl_cache
    --config.model.checkpoint=sd_xl_base_1.0.safetensors --config.data.path=/pictures [--visits 4]
python train.py --config configs/sdxl_base.py ... --config.data.name=cached_latents --config.data.path=...

Files appear whole or not at all; the same command again makes those that are missing. Several processes
share the work with --host 0 --hosts 4 (to 3).
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator

import numpy as np
from absl import flags

from sgm_jax import cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of these names."""

    output: str | None
    visits: int = 1
    batch_size: int = 8
    shard_size: int = 512
    host: int = 0
    hosts: int = 1


def define_flags() -> None:
    """Only where the tool is run: other tools have flags of these names."""
    cli.define_config("the model's, and the pictures' (config.data)")
    flags.DEFINE_string('output', None, 'folder of the cache')
    flags.DEFINE_integer('visits', 1, 'crops of each picture', lower_bound=1)
    flags.DEFINE_integer('batch_size', 8, 'pictures encoded at once', lower_bound=1)
    flags.DEFINE_integer('shard_size', 512, 'records of a file', lower_bound=1)
    flags.DEFINE_integer('host', 0, 'number of this process, below --hosts', lower_bound=0)
    flags.DEFINE_integer('hosts', 1, 'processes that share the work', lower_bound=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A cache to be: what is read, what encodes it, and where it goes."""

    engine: object
    frozen: object
    source: object
    encode: object
    options: Options
    seed: int
    folder: pathlib.Path


def main() -> int:
    names = [field.name for field in dataclasses.fields(Options)]
    return make(flags.FLAGS.config, Options(**{name: getattr(flags.FLAGS, name) for name in names}))


def make(config, options: Options) -> int:
    """Makes a cache, or the rest of one."""
    from sgm_jax.errors import UserError

    if config is None or not options.output:
        raise UserError('give --config FILE.py and --output FOLDER')
    if options.host >= options.hosts:
        raise UserError(f'--host is {options.host}; give a number below --hosts={options.hosts}')
    import jax

    from sgm_jax.data import pipeline
    from sgm_jax.data.cached_latents import EMPTY
    from sgm_jax.engines import DiffusionEngine, build
    from sgm_jax.engines.caching import make_encoder

    folder = pathlib.Path(options.output).expanduser()
    engine = build(config)
    if not isinstance(engine, DiffusionEngine):
        raise UserError('a cache is made for diffusion models; this config is of another')
    if engine.structure.shape.first_stage is None:
        raise UserError('this model works on pixels: there is nothing to keep')
    sources = {
        split: pipeline.make_source(config.data, split=split) for split in ('train', 'held_out')
    }
    if getattr(sources['train'], 'buckets', ()):
        raise UserError('data.buckets: a cache holds examples of one size; make one for each size')
    engine.check(sources['train'].record(0, None))
    lengths = {
        'train': len(sources['train']) * options.visits,
        'held_out': min(_HELD_OUT, len(sources['held_out'])),
    }
    shards = {split: -(-length // options.shard_size) for split, length in lengths.items()}
    _settle(folder, engine, config, sources['train'], shards, options)
    work = Work(
        engine=engine,
        frozen=jax.device_put(engine.init_frozen(jax.random.key(config.seed))),
        source=sources['train'],
        encode=make_encoder(engine.structure, engine.task),
        options=options,
        seed=config.seed,
        folder=folder,
    )
    if options.host == 0 and not (folder / EMPTY).is_file():
        _write_empty(work)
    for split in ('held_out', 'train'):
        records = _pictures(sources[split]) if split == 'held_out' else None
        for number in range(options.host, shards[split], options.hosts):
            indices = range(
                number * options.shard_size, min((number + 1) * options.shard_size, lengths[split])
            )
            made = map(records, indices) if records else _encoded(work, indices)
            _write(folder, split, number, shards[split], made)
    print(f'{lengths["train"]} records in {folder}; train with:')
    print(f'  --config.data.name=cached_latents --config.data.path={folder}')
    return 0


# For the pictures that a run logs.
_HELD_OUT = 64


def _settle(
    folder: pathlib.Path, engine, config, source, shards: dict[str, int], options: Options
) -> None:
    """Writes what the cache is made of, or compares it with what is there."""
    from sgm_jax.config import plain
    from sgm_jax.data.cached_latents import SETTINGS, read_settings
    from sgm_jax.errors import UserError
    from sgm_jax.interop.whole_files import whole

    wanted = {
        'fingerprint': engine.fingerprint,
        'data': json.loads(json.dumps(plain(config.data))),
        'seed': config.seed,
        'visits': options.visits,
        'shard_size': options.shard_size,
        'shards': shards,
        'described': source.describe().splitlines()[0],
    }
    if (folder / SETTINGS).is_file():
        there = read_settings(folder)
        other = sorted(key for key in wanted if there.get(key) != wanted[key])
        if other:
            raise UserError(
                f'{folder}: the cache there was made with another {", ".join(other)}; choose another '
                '--output, or remove it'
            )
        return
    with _told(folder), whole(folder / SETTINGS) as file:
        file.write(json.dumps(wanted, indent=1).encode())


@contextlib.contextmanager
def _told(place: pathlib.Path) -> Iterator[None]:
    """Around what writes: a place that cannot be written is one line."""
    from sgm_jax.errors import UserError

    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter of the writer in C++
        reason = getattr(error, 'strerror', None) or str(error).split(';')[0]
        raise UserError(
            f'{place}: cannot be written ({reason}); free some space or choose another --output'
        ) from error


def _pictures(source):
    """Held-out records as they are: a run shows them beside its samples."""
    return lambda index: source.record(index, None)


def _encoded(work: Work, indices: range) -> Iterator[dict[str, np.ndarray]]:
    """Records of the train split, encoded batch by batch; files are read ahead by threads."""
    from sgm_jax.errors import UserError

    length = len(work.source)
    read = lambda index: work.source.record(
        index % length, np.random.default_rng([work.seed, index])
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for group in _grouped(indices, work.options.batch_size):
            records = list(pool.map(read, group))
            # The last batch is filled up, for one compiled shape.
            padded = records + records[-1:] * (work.options.batch_size - len(records))
            batch = {key: np.stack([record[key] for record in padded]) for key in padded[0]}
            made = work.encode(work.frozen, work.engine.prepare(batch))
            made = {key: np.asarray(value) for key, value in made.items()}
            read_still = work.engine.structure.shape.conditioner.reads_beside(made)
            for place, (index, record) in enumerate(zip(group, records, strict=True)):
                kept = {key: value for key, value in record.items() if key in read_still}
                kept |= work.engine.task.beside(record)
                kept |= {key: value[place] for key, value in made.items()}
                broken = [k for k, v in kept.items() if _is_float(v) and not np.isfinite(v).all()]
                if broken:
                    raise UserError(
                        f'record {index} of the data: {", ".join(broken)} is not finite; the encoder '
                        'overflows (use float32 for model.first_stage) or its weights are broken'
                    )
                yield kept


def _is_float(value) -> bool:
    kind = np.asarray(value).dtype
    return kind.kind == 'f' or kind.name == 'bfloat16'


def _grouped(indices: range, count: int) -> Iterator[list[int]]:
    found = iter(indices)
    while group := list(itertools.islice(found, count)):
        yield group


def _write_empty(work: Work) -> None:
    """What the encoders make of the values that replace dropped entries (the empty prompt)."""
    from sgm_jax.data.cached_latents import EMPTY
    from sgm_jax.engines.caching import frozen_embedders
    from sgm_jax.interop.whole_files import whole

    conditioner = work.engine.structure.shape.conditioner
    values = {
        slot.input_key: slot.legacy_ucg_value
        for slot in conditioner.slots
        if slot.legacy_ucg_value is not None
    }
    record = {k: v for k, v in work.source.record(0, None).items() if k != 'jpg'}
    record |= {key: np.asarray(value) for key, value in values.items()}
    batch = {key: np.asarray(value)[None] for key, value in record.items()}
    made = work.encode(work.frozen, work.engine.prepare(batch)) if values else {}
    replaced = {
        index
        for index in frozen_embedders(work.engine.structure, work.engine.task)
        if set(conditioner.slots[index].keys) & set(values)
    }
    empty = {
        f'empty/{name.removeprefix("embedded/")}': np.asarray(value)[0]
        for name, value in made.items()
        if name.startswith('embedded/') and int(name.split('/')[1]) in replaced
    }
    with _told(work.folder), whole(work.folder / EMPTY) as file:
        np.savez(file, **empty)


def _write(folder: pathlib.Path, split: str, number: int, count: int, made: Iterator[dict]) -> None:
    from sgm_jax.data import packed
    from sgm_jax.data.array_records import whole_array_record
    from sgm_jax.data.cached_latents import shard_path

    place = shard_path(folder, split, number, count)
    if place.is_file():
        return
    with contextlib.ExitStack() as stack:
        with _told(place):
            writer = stack.enter_context(whole_array_record(place))
        # What goes wrong where records are made is not the place's.
        for record in made:
            with _told(place):
                writer.write(packed.pack(record))
        with _told(place):
            stack.close()
    print(f'{place.name} is written')


if __name__ == '__main__':
    define_flags()
    cli.run(main)
