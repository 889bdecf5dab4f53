"""Makes a dataset of TensorFlow Datasets, with splits and statistics, from pictures or videos.

python -m sgm_jax.tools.prepare_dataset --input /pictures --output /data/tfds --name photos
python train.py --config configs/sdxl_base.py ... --config.data.path=/data/tfds/photos/1.0.0

All is read twice: once to look at it, and once to write it. Memory holds a few examples for each worker,
and a hash of each. The dataset appears whole or not at all.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

from absl import flags

from sgm_jax import cli

LOG = logging.getLogger('sgm_jax.tools.prepare_dataset')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of these names."""

    input: str | None
    output: str | None
    name: str | None
    version: str = '1.0.0'
    kind: str = 'auto'
    format: str = 'auto'
    caption: str = ''
    only_captioned: bool = False
    held_out: float = 0.01
    drop_duplicates: bool = False
    max_damaged: float = 0.01
    shard_megabytes: int = 256
    workers: int | None = None
    beam: bool = False
    runner: str = 'DirectRunner'
    beam_options: tuple[str, ...] | list[str] = ()


def define_flags() -> None:
    """Only where the tool is run: other tools have flags of these names."""
    flags.DEFINE_string('input', None, 'a folder, tars, ArrayRecord or Arrow files; or videos')
    flags.DEFINE_string('output', None, 'the folder of datasets; this one is NAME/VERSION in it')
    flags.DEFINE_string('name', None, 'of the dataset, in small letters')
    flags.DEFINE_string('version', '1.0.0', 'of the dataset')
    flags.DEFINE_enum('kind', 'auto', ['auto', 'pictures', 'videos'], 'what is prepared')
    flags.DEFINE_string('format', 'auto', 'of pictures, as data.format of captioned_pictures')
    flags.DEFINE_string('caption', '', 'the column or key of captions')
    flags.DEFINE_bool('only_captioned', False, 'leave out what has no caption')
    flags.DEFINE_float('held_out', 0.01, 'the share of the split test')
    flags.DEFINE_bool('drop_duplicates', False, 'keep the first of those with the same bytes')
    flags.DEFINE_float('max_damaged', 0.01, 'the share of damaged files that ends it')
    flags.DEFINE_integer('shard_megabytes', 256, 'of a file, about', lower_bound=1)
    flags.DEFINE_integer('workers', None, 'threads; as many as processors', lower_bound=1)
    flags.DEFINE_bool('beam', False, 'run it with Apache Beam')
    flags.DEFINE_string('runner', 'DirectRunner', "Beam's; DirectRunner is this machine")
    flags.DEFINE_list('beam_options', [], "Beam's, with commas between: name=value,name=value")


def main() -> int:
    names = [field.name for field in dataclasses.fields(Options)]
    return prepare(Options(**{name: getattr(flags.FLAGS, name) for name in names}))


def prepare(options: Options) -> int:
    """Makes a dataset.

    Raises:
      UserError: options that make no sense, nothing usable, too much damage, or no room for it.
    """
    from sgm_jax.errors import UserError
    from sgm_jax.tools import prepare_runners
    from sgm_jax.tools.prepare_statistics import report

    target = _check(options)
    if options.beam:
        runner = prepare_runners.Beam(options.runner, options.beam_options)
    else:
        runner = prepare_runners.Threads(options.workers or len(os.sched_getaffinity(0)))
    try:
        with _appearing(target) as (folder, work):
            found = _make(options, runner, folder, work)
    except OSError as error:
        raise UserError(f'{target}: cannot be written ({error.strerror or error})') from error
    print('\n'.join(report(found)).encode('utf-8', 'backslashreplace').decode())
    print(f'it is in {target}, with all of this in {STATISTICS}')
    if found['kind'] == 'picture':
        print(f'  --config.data.name=captioned_pictures --config.data.path={target}')
    return 0


STATISTICS = 'statistics.json'


def _check(options: Options) -> pathlib.Path:
    """The folder of the dataset to be; a UserError for what cannot be."""
    from sgm_jax.data import files, places
    from sgm_jax.errors import UserError

    if not (options.input and options.output and options.name):
        raise UserError('give --input PATH, --output FOLDER and --name NAME')
    if not re.fullmatch('[a-z][a-z0-9_]*', options.name):
        raise UserError(
            f'--name is {options.name!r}; take small letters, digits and _, a letter first'
        )
    if not re.fullmatch(r'\d+\.\d+\.\d+', options.version):
        raise UserError(f'--version is {options.version!r}; give three numbers, e.g. 1.0.0')
    if not 0 <= options.held_out < 1:
        raise UserError(f'--held_out is {options.held_out:g}; give a share from 0 to below 1')
    if not 0 <= options.max_damaged <= 1:
        raise UserError(f'--max_damaged is {options.max_damaged:g}; give a share from 0 to 1')
    if (options.runner != 'DirectRunner' or options.beam_options) and not options.beam:
        raise UserError('--runner and --beam_options are for --beam; give that too')
    if places.is_remote(options.output):
        raise UserError(f'--output is {options.output}; give a folder, and copy it from there')
    target = pathlib.Path(options.output).expanduser().resolve() / options.name / options.version
    if target.exists():
        raise UserError(
            f'{target}: it is there already; give another --name or --version, or remove it'
        )
    if options.input != files.DEMO and not places.is_remote(options.input):
        source = pathlib.Path(options.input).expanduser().resolve()
        if target.is_relative_to(source):
            raise UserError(f'--output {options.output} is inside --input; give another folder')
    return target


@contextlib.contextmanager
def _appearing(target: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Folders for the dataset and for what is needed meanwhile; the first takes its place at the end."""
    datasets = target.parent.parent
    prefix = f'.{target.parent.name}-{target.name}.'
    for old in sorted(datasets.glob(f'{prefix}*')):
        LOG.warning('%s is of a run that still goes on, or was stopped; then remove it', old)
    place = datasets / f'{prefix}{uuid.uuid4().hex[:8]}'
    folder, work = place / 'dataset', place / 'work'
    try:
        folder.mkdir(parents=True)
        work.mkdir()
        yield folder, work
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)


# An example is looked at within milliseconds, and a part of the work should be worth its file.
_PART = (16, 4096)


def _make(options: Options, runner, folder: pathlib.Path, work: pathlib.Path) -> dict:
    """Writes the dataset into `folder`, and returns its statistics."""
    from sgm_jax.data.damage import Damage
    from sgm_jax.errors import UserError
    from sgm_jax.tools import prepare_files
    from sgm_jax.tools.prepare_examples import Input, open_examples

    names = [field.name for field in dataclasses.fields(Input) if field.name != 'path']
    given = Input(path=_absolute(options.input), **{n: getattr(options, n) for n in names})
    open_examples.cache_clear()
    examples = open_examples(given)
    total = len(examples) + len(examples.damaged)
    damage = Damage(total, limit=options.max_damaged, what=examples.kind)
    damage.update(examples.damaged)
    job = prepare_files.Job(given=given, total=len(examples), folder=str(work))
    size = min(max(_PART[0], len(examples) // 2048), _PART[1])
    parts = [(first, min(first + size, job.total)) for first in range(0, len(examples), size)]
    runner.run(functools.partial(prepare_files.survey, job), parts, 'look')

    facts = lambda: prepare_files.surveyed(job, parts)
    damage.update({fact.name: fact.damaged for fact in facts() if fact.damaged})
    silent = lambda fact: options.only_captioned and not fact.damaged and fact.text is None
    skipped = examples.skipped | {f.name: 'it has no caption' for f in facts() if silent(f)}
    usable = lambda: (fact for fact in facts() if not fact.damaged and not silent(fact))
    layout = prepare_files.Layout(job, options.shard_megabytes * 2**20)
    with contextlib.closing(layout):
        summary, groups = _place(usable, layout, options)
    if 'train' not in layout.lengths:
        left_out = [*damage.names.values(), *skipped.values()]
        reason = f'the first: {left_out[0]}' if left_out else f'--held_out is {options.held_out:g}'
        raise UserError(
            f'{options.input}: of {total} {examples.kind}s none is left to train on; {reason}'
        )
    if options.held_out and 'test' not in layout.lengths:
        LOG.warning('there is no split test: all %ss are alike', examples.kind)
    contents = prepare_files.Contents(
        kind=examples.kind, has_text=layout.has_text, has_label=layout.has_label
    )
    write = functools.partial(prepare_files.write_shard, job, contents)
    runner.run(write, layout.shards(folder, options.name), 'write')
    prepare_files.write_metadata(
        folder,
        name=options.name,
        version=options.version,
        contents=contents,
        lengths=layout.lengths,
        label_names=examples.label_names,
    )
    left_out = {'damaged': damage.names, 'skipped': skipped}
    return _write_statistics(folder, options, examples, left_out, layout.lengths, summary, groups)


def _absolute(path: str) -> str:
    """The same wherever it is opened, as by workers of Beam."""
    from sgm_jax.data import files, places

    if path == files.DEMO or places.is_remote(path):
        return path
    return os.path.abspath(os.path.expanduser(path))


def _write_statistics(
    folder: pathlib.Path,
    options: Options,
    examples,
    left_out: dict[str, dict[str, str]],
    lengths: dict[str, list[int]],
    summary,
    groups: list[list[str]],
) -> dict:
    from sgm_jax.interop.whole_files import whole

    found = {
        'name': options.name,
        'version': options.version,
        'input': options.input,
        'kind': examples.kind,
        'held_out': options.held_out,
        'found': len(examples) + len(examples.damaged) + len(examples.skipped),
        'examples': summary.examples,
        **summary.numbers(examples.label_names),
        'duplicates': {
            'dropped': options.drop_duplicates,
            'copies': sum(len(group) - 1 for group in groups),
            'groups': groups,
        },
        **left_out,
    }
    for split, counts in found['splits'].items():
        counts['files'] = len(lengths[split])
    with whole(folder / STATISTICS) as file:
        # What is no text in a file's name is escaped as JSON has it too.
        text = json.dumps(found, indent=1, ensure_ascii=False)
        file.write(text.encode('utf-8', 'backslashreplace'))
    return found


def _place(facts, layout, options: Options):
    """Sends each example to its split; returns what was counted, and the names of those that are alike."""
    from sgm_jax.tools.prepare_files import Split
    from sgm_jax.tools.prepare_statistics import Summary

    seen, repeated = set(), set()
    for fact in facts():
        digest = bytes.fromhex(fact.sha256)
        (repeated if digest in seen else seen).add(digest)
    split_of = Split(seen, options.held_out)
    del seen
    summary, groups = Summary(), {}
    for fact in facts():
        digest = bytes.fromhex(fact.sha256)
        if digest in repeated:
            alike = groups.setdefault(digest, [])
            alike.append(fact.name)
            if options.drop_duplicates and len(alike) > 1:
                continue
        split = split_of(digest)
        summary.add(fact, split)
        layout.add(fact, split)
    return summary, list(groups.values())


if __name__ == '__main__':
    define_flags()
    cli.run(main)
