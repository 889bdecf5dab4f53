"""A program: samples tiny models on several meshes, and prints how they differ.

    PYTHONPATH=.:tests python tests/spread.py CASE '[{"data": 1}, {"data": 2, "fsdp": 2, "context": 2}]'

with XLA_FLAGS=--xla_force_host_platform_device_count=8. A mesh takes as many devices as its sizes say, and is
compared with a model that was loaded without one.
"""

import functools
import json
import math
import pathlib
import sys
import tempfile

import golden
import jax
import numpy as np
import tiny
import tiny_pictures

import sgm_jax
from sgm_jax.engines import build
from sgm_jax.interop import checkpoint_files, to_sgm, workdir_files
from sgm_jax.parallel import compiler
from sgm_jax.parallel import mesh as meshes
from sgm_jax.sampling import images, videos

# Compiled quickly, for little is run.
compiler.OPTIONS['cpu'] = dict(
    compiler.OPTIONS['cpu'],
    xla_backend_optimization_level=0,
    xla_llvm_disable_expensive_passes=True,
)
FRAMES = 3
STAGE = {'z_channels': 4, 'resolution': 16, 'in_channels': 3, 'out_ch': 3, 'ch': 32}
STAGE |= {'ch_mult': (1, 1), 'num_res_blocks': 1, 'attn_resolutions': (), 'double_z': True}


def svd():
    """The tiny SVD on latents, with a temporal decoder: 3 frames of 16x16 pixels, 8x8 latents."""
    found = tiny.config()
    decoder = {**STAGE, 'name': 'video_decoder', 'video_kernel_size': (3, 1, 1)}
    found.model.first_stage = {'name': 'autoencoder', 'encoder': STAGE, 'decoder': decoder}
    found.model.network.update(in_channels=8, out_channels=4)
    found.model.task.num_frames = FRAMES
    return found


def sdxl():
    """The tiny SDXL on 8x8 pixels."""
    return tiny_pictures.config('sdxl_base')


def write(found, path: pathlib.Path) -> None:
    """A file of the model, with weights made from their names."""
    structure = build(found).structure
    tensors = {k: golden.generate(k, x.shape) for k, x in to_sgm(structure.shape).items()}
    module = checkpoint_files.fill(structure.module(), tensors, 'made up')
    checkpoint_files.write_model(str(path), module)


def samples(model, case: str) -> np.ndarray:
    """Two, in floating point; with guidance the network sees four."""
    if case == 'sdxl':
        return model.sample(prompt=['a fox', 'a cat'], decode_chunk=1)
    draw = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    return model.sample(image=list(draw), decode_chunk=2, decode_overlap=1)


def write_workdir(found, model, path: pathlib.Path) -> pathlib.Path:
    """One with the model's trained weights, whose frozen ones are in the file."""
    workdir = path.parent / 'workdir'
    workdir.mkdir()
    found.model.checkpoint = str(path)
    (workdir / 'config.json').write_text(found.to_json())
    workdir_files.write_weights(workdir, model.params)
    return workdir


def alike(a, b) -> bool:
    """Whether two trees are the same numbers on the same devices."""
    same = lambda x, y: x.sharding == y.sharding and bool((np.asarray(x) == np.asarray(y)).all())
    return all(jax.tree.leaves(jax.tree.map(same, a, b)))


def held(tree) -> list[int]:
    """Bytes of the arrays of a tree on each device."""
    found = dict.fromkeys(jax.devices(), 0)
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return list(found.values())


def run(case: str, sizes: list[dict]) -> list[dict]:
    """How far each mesh's samples are from those of one device, and how much of the model a device has."""
    images.to_uint8 = videos.to_uint8 = lambda x: np.asarray(x, np.float32)
    meshes.by_shape = functools.partial(meshes.by_shape, min_size=64)
    make, results = meshes.make_mesh, []
    found = {'svd': svd, 'sdxl': sdxl}[case]()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'model.safetensors'
        write(found, path)
        one = sgm_jax.load(path, found)
        wanted = samples(one, case)
        workdir = write_workdir(found, one, path)
        size = sum(x.nbytes for x in jax.tree.leaves((one.params, one.frozen)))
        for mesh in sizes:
            devices = jax.devices()[: math.prod(mesh.values())]
            meshes.make_mesh = lambda sizes, _=None, devices=devices: make(sizes, devices)
            model = sgm_jax.load(path, found, mesh=mesh)
            again = sgm_jax.load(workdir, mesh=mesh)
            here = held((model.params, model.frozen))
            got = samples(model, case)
            results.append(
                dict(
                    devices=len(devices),
                    apart=float(np.abs(got - wanted).max()),
                    most=float(np.abs(wanted).max()),
                    deviation=float(wanted.std()),
                    share=max(here) / size,
                    workdir=alike(model.params, again.params) and alike(model.frozen, again.frozen),
                )
            )
    return results


if __name__ == '__main__':
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
