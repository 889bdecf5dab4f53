"""Small datasets of pictures for the tests of the data room, in every format that is read."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image

from sgm_jax.data import tf_example


def encoded(level: int, size: tuple[int, int] = (24, 32), format: str = 'PNG') -> bytes:
    """A plain grey picture of `size` (height, width)."""
    buffer = io.BytesIO()
    Image.new('RGB', size[::-1], (level,) * 3).save(buffer, format)
    return buffer.getvalue()


def level(record: dict[str, np.ndarray]) -> int:
    """The grey level of a record of `encoded`."""
    return round(float(record['jpg'].mean() + 1) * 127.5)


def write_folder(folder: pathlib.Path, count: int, first: int = 0, **options) -> pathlib.Path:
    """Pictures of levels first, first + 1, ... with captions 'grey LEVEL' beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f'{number:03}.png').write_bytes(encoded(number, **options))
        (folder / f'{number:03}.txt').write_text(f'grey {number}\n')
    return folder


def write_tar(path: pathlib.Path, numbers: range) -> pathlib.Path:
    """Examples with .png or .jpg, .txt or .json, and .cls."""
    with tarfile.open(path, 'w') as tar:
        for number in numbers:
            odd = number % 2
            parts = {'png': encoded(number), 'txt': f'grey {number}'.encode()}
            if odd:
                told = {'caption': f'grey {number}', 'width': 32}
                parts = {
                    'jpg': encoded(number, format='JPEG'),
                    'json': json.dumps(told).encode(),
                }
            parts['cls'] = str(number % 3).encode()
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f'part/{number:03}.{suffix}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_array_record(path: pathlib.Path, numbers: range) -> pathlib.Path:
    """tf.train.Examples with image, text and label."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for number in numbers:
        features = {'image': encoded(number), 'text': f'grey {number}', 'label': number % 3}
        writer.write(tf_example.serialize(features))
    writer.close()
    return path


def write_arrow(folder: pathlib.Path, numbers: range) -> pathlib.Path:
    """As Dataset.save_to_disk of Hugging Face's datasets leaves it: streams of batches in two files."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    halves = np.array_split(np.array(numbers), 2)
    names = [f'data-{i:05}-of-00002.arrow' for i in range(2)]
    for name, half in zip(names, halves, strict=True):
        table = pa.table(
            {
                'image': [{'bytes': encoded(int(n)), 'path': None} for n in half],
                'text': [f'grey {n}' for n in half],
                'label': [int(n) % 3 for n in half],
            }
        )
        with (
            pa.OSFile(str(folder / name), 'wb') as file,
            pa.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=3)
    state = {'_data_files': [{'filename': name} for name in names]}
    (folder / 'state.json').write_text(json.dumps(state))
    (folder / 'dataset_info.json').write_text('{}')
    return folder
