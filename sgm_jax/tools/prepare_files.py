"""The files of a prepared dataset: facts of examples, who is in which file, the files, and TFDS's metadata.

What is worked on by many (`survey`, `write_shard`) takes a job, which all share, and a part of it, and leaves
a file. What is done once (`Layout`, `write_metadata`) reads those.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Collection, Iterator, Sequence

from sgm_jax.data import tf_example
from sgm_jax.data.array_records import whole_array_record
from sgm_jax.data.damage import DamagedError
from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole
from sgm_jax.tools.prepare_examples import Fact, Input, dump, load, open_examples

# Of an example without a class, in a dataset where others have one; TFDS does the same.
_NO_LABEL = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all parts share: the input, how many examples it has, and the folder of facts and plans."""

    given: Input
    total: int
    folder: str


def survey(job: Job, part: tuple[int, int]) -> None:
    """Looks at the examples from one number up to another, and writes their facts.

    Raises:
      UserError: this process sees another number of examples than the one that began.
    """
    first, last = part
    examples = open_examples(job.given)
    if len(examples) != job.total:
        raise UserError(
            f'{job.given.path}: {len(examples)} examples here, {job.total} when it began; is it being '
            'written to, or not the same on all machines?'
        )
    with whole(_facts_path(job.folder, first)) as file:
        file.writelines(dump(examples.look(number) for number in range(first, last)))


def surveyed(job: Job, parts: Sequence[tuple[int, int]]) -> Iterator[Fact]:
    """What `survey` wrote of all parts, in the order of the examples."""
    for first, _ in parts:
        yield from load(_facts_path(job.folder, first))


class Split:
    """Tells by its content which split an example is in: one that comes twice is twice in the same.

    Args:
      digests: of all examples, SHA-256, each once.
      held_out: the share of the split 'test', which has at least one of them, if there are two.
    """

    def __init__(self, digests: Collection[bytes], held_out: float):
        self._below = int(held_out * 2**64)
        if held_out and len(digests) > 1:
            self._below = max(self._below, 1 + min(map(_begin, digests)))

    def __call__(self, digest: bytes) -> str:
        return 'test' if _begin(digest) < self._below else 'train'


def _begin(digest: bytes) -> int:
    return int.from_bytes(digest[:8], 'big')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the dataset to be: the facts of its examples, and where it goes."""

    facts: str
    target: str


class Layout:
    """Sends examples to the files of their splits, in order, each file up to a size.

    Attributes:
      lengths: how many examples each file has, by split.
      has_text, has_label: whether any example has a caption, or a class.
    """

    def __init__(self, job: Job, target_bytes: int):
        self.job, self.target_bytes = job, target_bytes
        self.lengths: dict[str, list[int]] = {}
        self.has_text = self.has_label = False
        self._open: dict[str, tuple] = {}

    def add(self, fact: Fact, split: str) -> None:
        """Puts one into the file of its split that is being filled."""
        lengths = self.lengths.setdefault(split, [])
        file, size = self._open.get(split, (None, 0))
        if file is None or (size and size + fact.size > self.target_bytes):
            if file is not None:
                file.close()
            path, size = _plan_path(self.job.folder, split, len(lengths)), 0
            file = open(path, 'wb')  # noqa: SIM115
            lengths.append(0)
        file.writelines(dump([fact]))
        lengths[-1] += 1
        self._open[split] = file, size + fact.size
        self.has_text |= fact.text is not None
        self.has_label |= fact.label is not None

    def close(self) -> None:
        """Nothing more comes."""
        for file, _ in self._open.values():
            file.close()
        self._open = {}

    def shards(self, folder: pathlib.Path, name: str) -> list[Shard]:
        """The files, as TFDS names those of the dataset `name`."""
        return [
            Shard(
                facts=str(_plan_path(self.job.folder, split, index)),
                target=str(folder / f'{name}-{split}.array_record-{index:05}-of-{len(lengths):05}'),
            )
            for split, lengths in self.lengths.items()
            for index in range(len(lengths))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a record beside the bytes, the name and the size."""

    kind: str
    has_text: bool
    has_label: bool


def write_shard(job: Job, contents: Contents, shard: Shard) -> None:
    """Reads the examples of a file again and writes it.

    Raises:
      UserError: one of them is not what it was when it was looked at, or there is no room.
    """
    examples = open_examples(job.given)
    target = pathlib.Path(shard.target)
    try:
        with whole_array_record(target) as writer:
            for fact in load(pathlib.Path(shard.facts)):
                data = _read_again(examples, fact)
                writer.write(tf_example.serialize(_features(contents, fact, data)))
    except RuntimeError as error:  # of the writer in C++
        raise UserError(f'{target.name}: cannot be written ({str(error).split(";")[0]})') from error


def write_metadata(
    folder: pathlib.Path,
    *,
    name: str,
    version: str,
    contents: Contents,
    lengths: dict[str, list[int]],
    label_names: Sequence[str],
) -> None:
    """Writes dataset_info.json and features.json, by which TensorFlow Datasets knows the folder.

    Args:
      folder: of the files.
      name, version: of the dataset.
      contents: of its records.
      lengths: how many records each file has, by split.
      label_names: of the classes; empty where they only have numbers.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    number = lambda dtype: tfds.features.Scalar(dtype)
    features = {'name': tfds.features.Text(), 'height': number(np.int64), 'width': number(np.int64)}
    if contents.kind == 'picture':
        # Of any format: the bytes are those of the file.
        features['image'] = tfds.features.Image()
    else:
        features |= {'video': number(np.object_), 'fps': number(np.float32)}
        features['duration'] = number(np.float32)
    if contents.has_text:
        features['text'] = tfds.features.Text()
    if contents.has_label:
        named = tfds.features.ClassLabel(names=list(label_names)) if label_names else None
        features['label'] = named or number(np.int64)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        dataset_name=name,
        filetype_suffix='array_record',
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=counts,
            num_bytes=sum(path.stat().st_size for path in folder.glob(f'{name}-{split}.*')),
            filename_template=template.replace(split=split),
        )
        for split, counts in lengths.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=splits,
        version=version,
        description=f'Prepared from files: {contents.kind}s, as they were encoded.',
        check_data=False,
    )


def _read_again(examples, fact: Fact) -> bytes:
    try:
        data, reason = examples.read(fact.number), 'has changed'
    except DamagedError as error:
        data, reason = b'', error.reason
    if hashlib.sha256(data).hexdigest() != fact.sha256:
        raise UserError(f'{fact.name}: {reason} since it was first looked at; run again')
    return data


def _features(contents: Contents, fact: Fact, data: bytes) -> dict:
    features = {'name': fact.name, 'height': fact.height, 'width': fact.width}
    if contents.kind == 'picture':
        features['image'] = data
    else:
        features |= {'video': data, 'fps': fact.fps, 'duration': fact.duration}
    if contents.has_text:
        features['text'] = fact.text or ''
    if contents.has_label:
        features['label'] = _NO_LABEL if fact.label is None else fact.label
    return features


def _facts_path(folder: str, first: int) -> pathlib.Path:
    return pathlib.Path(folder) / f'facts-{first:012}.jsonl'


def _plan_path(folder: str, split: str, index: int) -> pathlib.Path:
    return pathlib.Path(folder) / f'plan-{split}-{index:05}.jsonl'
