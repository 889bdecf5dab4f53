"""The peer's side: a DataLoader of PyTorch with torchvision's transforms, and decord for clips.

.bench-venv/bin/python -m benchmarks.torch_data pictures

torchvision's transforms of tensors, which are faster than those of Pillow's pictures, and its own reader of
jpegs where its C++ part can be loaded (beside a PyTorch without CUDA, PyPI's has none; then Pillow).
"""

import sys

from benchmarks import data_files, process
from benchmarks.cases import DataCase


def measure(case: DataCase, threads: int) -> dict:
    """Times `case` with `threads` worker processes that stay."""
    import torch
    from torch.utils.data import DataLoader

    torchvision = import_torchvision()

    found = sorted(data_files.folder(case.kind).iterdir())
    torch.set_num_threads(1)  # the workers are what runs side by side
    make = Pictures if case.kind == 'pictures' else Clips
    loader = DataLoader(
        make(found, case, torchvision),
        batch_size=case.batch,
        shuffle=True,
        num_workers=threads,
        prefetch_factor=4,
        persistent_workers=True,
        drop_last=True,
    )
    batches = endless(loader)

    def read():
        for _ in range(case.batches):
            batch = next(batches)
        return batch

    times, last = process.timed(read, case)
    shape = (case.batch, *(case.frames,) * (case.frames > 1), 3, case.size, case.size)
    if tuple(last.shape) != shape or last.dtype != torch.float32:
        raise ValueError(f'a batch is {last.dtype} {tuple(last.shape)}, not {shape}')
    return dict(
        name=f'torch {torch.__version__}, torchvision {torchvision.__version__}', seconds=times
    )


def import_torchvision():
    """Without its C++ part it wants these two names, of which no transform makes use."""
    import importlib

    import torch

    names = torch.library.Library('torchvision', 'FRAGMENT')
    try:
        return importlib.import_module('torchvision')
    except RuntimeError:
        for name in ('nms', 'qnms'):
            names.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        for module in [m for m in sys.modules if m.split('.')[0] == 'torchvision']:
            del sys.modules[module]
        return importlib.import_module('torchvision')


def reader(torchvision):
    """A function from a path to a uint8 picture (3, h, w)."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    try:
        torchvision.io.decode_image(torch_bytes())
    except RuntimeError:
        return lambda path: functional.pil_to_tensor(Image.open(path).convert('RGB'))
    return lambda path: torchvision.io.decode_image(path, mode='RGB')


def torch_bytes():
    """A small jpeg, encoded."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'JPEG')
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), np.uint8).copy())


def endless(loader):
    """Epoch after epoch."""
    while True:
        yield from loader


class Pictures:
    """Jpegs, scaled so that the shorter side fits, cropped and mirrored at random, in [-1, 1]."""

    def __init__(self, paths, case: DataCase, torchvision):
        import torch
        from torchvision.transforms import v2

        self.paths, self.read = [str(path) for path in paths], reader(torchvision)
        self.transform = v2.Compose(
            [
                v2.Resize(case.size, v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomCrop(case.size),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        return self.transform(self.read(self.paths[index]))


class Clips:
    """Windows of files at a random time, scaled while they are decoded, cropped at random, in [-1, 1]."""

    WINDOWS = 16  # of each file in an epoch

    def __init__(self, paths, case: DataCase, torchvision):
        del torchvision
        import torch
        from torchvision.transforms import v2

        self.paths, self.case = [str(path) for path in paths], case
        self.transform = v2.Compose(
            [
                v2.RandomCrop(case.size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths) * self.WINDOWS

    def __getitem__(self, index: int):
        import decord
        import torch

        size = self.case.size
        # To the shorter side's size, as the clips are wide; decord scales as it decodes.
        width = round(size * 1280 / 720)
        path = self.paths[index % len(self.paths)]
        reader = decord.VideoReader(path, width=width, height=size, num_threads=1)
        stride = round(reader.get_avg_fps() / 12)
        last = len(reader) - (self.case.frames - 1) * stride
        start = int(torch.randint(last, ()))
        frames = reader.get_batch([start + stride * k for k in range(self.case.frames)]).asnumpy()
        return self.transform(torch.from_numpy(frames).permute(0, 3, 1, 2))


if __name__ == '__main__':
    process.main(measure)
