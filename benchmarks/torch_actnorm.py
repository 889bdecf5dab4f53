"""A patch discriminator with ActNorm in PyTorch: what tests/test_actnorm.py compares with.

.bench-venv/bin/python -m benchmarks.torch_actnorm > tests/goldens/actnorm.json

Written from what sgm's NLayerDiscriminator does with use_actnorm.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from gan_case import ACTNORM_CASE, parameters, pictures


class ActNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer('initialized', torch.tensor(0, dtype=torch.uint8))

    def forward(self, x):
        if self.training and not self.initialized:
            each = x.detach().movedim(1, 0).flatten(1)
            self.loc.data.copy_(-each.mean(1).view_as(self.loc))
            self.scale.data.copy_(1 / (each.std(1).view_as(self.scale) + 1e-6))
            self.initialized.fill_(1)
        return self.scale * (x + self.loc)


def main() -> None:
    ndf, layers = ACTNORM_CASE['ndf'], ACTNORM_CASE['n_layers']
    parts, width = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)], ndf
    for level in range(1, layers + 1):
        last, width = width, ndf * min(2**level, 8)
        parts += [nn.Conv2d(last, width, 4, 2 if level < layers else 1, 1), ActNorm(width)]
        parts += [nn.LeakyReLU(0.2)]
    main = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))
    network = nn.ModuleDict({'main': main})
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    weights = {name: torch.tensor(value) for name, value in parameters(shapes).items()}
    # The generated values of a flag mean nothing: a file of a trained one says 1, a fresh one 0.
    flags = [name for name in weights if name.endswith('initialized')]
    x = torch.from_numpy(np.moveaxis(pictures(3), -1, 1)).contiguous()
    found = {'shapes': shapes}
    for flag, key in ((1, 'trained'), (0, 'fresh')):
        network.load_state_dict(
            {**weights, **{name: torch.tensor(flag, dtype=torch.uint8) for name in flags}}
        )
        with torch.no_grad():
            found[key] = network['main'].train()(x).flatten().tolist()
    found['loc'] = network['main'][3].loc.flatten().tolist()
    found['scale'] = network['main'][3].scale.flatten().tolist()
    print(json.dumps(found))


if __name__ == '__main__':
    main()
