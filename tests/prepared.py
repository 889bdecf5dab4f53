"""Datasets prepared for tests, and what is in their files."""

import json

from sgm_jax.data import tf_example
from sgm_jax.tools.prepare_dataset import STATISTICS, Options, prepare


def made(source, output, name='set', **options):
    """The folder of the dataset, and its statistics."""
    options = {'held_out': 0.3, 'workers': 2, **options}
    given = Options(input=str(source), output=str(output), name=name, **options)
    assert prepare(given) == 0
    folder = output / name / given.version
    return folder, json.loads((folder / STATISTICS).read_text())


def records(folder):
    """The features of every record, by the name of its file."""
    from array_record.python.array_record_module import ArrayRecordReader

    found = {}
    for path in sorted(folder.glob('*.array_record-*')):
        reader = ArrayRecordReader(str(path))
        found[path.name] = [tf_example.parse(record) for record in reader.read_all()]
        reader.close()
    return found


def flat(folder, key='image'):
    return {r[key][0] for group in records(folder).values() for r in group}
