"""Features of pytorch-fid's Inception-v3 with generated weights: what tests/test_inception.py compares with.

.bench-venv/bin/python -m pip install torchvision pytorch-fid
.bench-venv/bin/python -m benchmarks.torch_inception tests/goldens/inception.npz
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from pytorch_fid import inception

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from gan_case import inception_parameters, scene


def main() -> None:
    found = {}

    def generated(*args, **kwargs):
        # Asked for in place of the published file, once the network stands.
        model = made[0]
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        found['shapes'] = shapes
        return {k: torch.from_numpy(np.asarray(v)) for k, v in inception_parameters(shapes).items()}

    made, build = [], inception._inception_v3
    keep = lambda *args, **kwargs: made.append(build(*args, **kwargs)) or made[-1]
    with (
        mock.patch.object(inception, 'load_state_dict_from_url', generated),
        mock.patch.object(inception, '_inception_v3', keep),
    ):
        model = inception.InceptionV3([3]).eval()
    for name, side in (('native', 299), ('resized', 96)):
        x = torch.from_numpy(np.moveaxis(scene(side), -1, 1)).contiguous()
        with torch.no_grad():
            found[name] = model((x + 1) / 2)[0][:, :, 0, 0].numpy()
    names = {k: v for k, v in found.pop('shapes').items() if not k.startswith('fc.')}
    text = '\n'.join(f'{name} {",".join(map(str, shape))}' for name, shape in names.items())
    np.savez_compressed(sys.argv[1], names=np.array(text), **found)


if __name__ == '__main__':
    main()
