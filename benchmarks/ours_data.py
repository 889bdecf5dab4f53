"""Our side: batches as training reads them.

python -m benchmarks.ours_data pictures
"""

from importlib import metadata

from benchmarks import data_files, process
from benchmarks.cases import DataCase


def measure(case: DataCase, threads: int) -> dict:
    """Times `case`, with as many threads reading ahead as there are workers on the other side."""
    data_files.make()
    from sgm_jax.data import pipeline

    node = {'path': str(data_files.folder(case.kind)), 'height': case.size, 'width': case.size}
    if case.kind == 'pictures':
        node |= {'name': 'captioned_pictures', 'text': 'none', 'flip': True}
    else:
        # Frames at twelve a second and the largest crop, as on the other side.
        node |= {'name': 'video_clips', 'num_frames': case.frames, 'frame_rates': 12}
        node |= {'crop_scale': (1.0, 1.0), 'held_out_fraction': 0.0}
    batches = pipeline.make_iterator(node, batch_size=case.batch, seed=0, num_threads=threads)

    def read():
        for _ in range(case.batches):
            batch = next(batches)
        return batch['jpg']

    times, last = process.timed(read, case)
    shape = (case.batch, *(case.frames,) * (case.frames > 1), case.size, case.size, 3)
    if last.shape != shape:
        raise ValueError(f'a batch is {last.shape}, not {shape}')
    return dict(name=f'sgm_jax.data, grain {metadata.version("grain")}', seconds=times)


if __name__ == '__main__':
    process.main(measure)
