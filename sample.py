r"""Makes pictures and videos with a trained model.

python sample.py --checkpoint sd_xl_base_1.0.safetensors --prompt 'a red fox in the snow' --output fox.png
python sample.py --checkpoint svd.safetensors --image photo.jpg --output video.mp4
python sample.py --checkpoint sv3d_p.safetensors --image chair.png --elevations 20 --output orbit.mp4
python sample.py --checkpoint runs/mnist --cls 7 --count 16 --output sevens.png

The checkpoint is the workdir of a run, an sgm file (.safetensors, .ckpt) or a diffusers folder. Videos are
written as .mp4, .gif, .webp or .png (a strip of frames), pictures as .png, .jpg or .webp. What is not given
is as in the config's `sample`. What does not fit one device is made over several: --mesh context=4.
"""

from absl import flags

from sgm_jax import cli

CONFIG = cli.define_config("the model: FILE.py[:VARIANT]; by default the checkpoint's own")
CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'a workdir, a published file, or a folder')
OUTPUT = flags.DEFINE_string('output', None, 'where it goes; the suffix is the format')
PROMPTS = flags.DEFINE_string('prompts', None, 'a text file with a prompt on each line')
REFINER = flags.DEFINE_string('refiner', None, 'a checkpoint that takes the last steps')
DTYPE = flags.DEFINE_string('dtype', None, 'float32, bfloat16 or float16, but for the first stage')
MESH = flags.DEFINE_string('mesh', None, 'several devices: data=2,fsdp=-1,context=2')
CACHE = flags.DEFINE_bool('cache', True, 'keep compiled programs for the next start')
WATERMARK = flags.DEFINE_bool('watermark', False, 'an invisible mark on pictures and frames')
OPTIONS = (
    # Pictures.
    flags.DEFINE_string('prompt', None, 'what is to be seen'),
    flags.DEFINE_string('negative_prompt', None, 'what is not to be seen'),
    flags.DEFINE_multi_integer('cls', None, 'the class; may be given again'),
    flags.DEFINE_integer('count', None, 'pictures for each prompt or class'),
    flags.DEFINE_float('strength', None, 'how much of --image is made anew, 0 to 1'),
    flags.DEFINE_float('handoff', None, "the refiner's share of the steps, 0 to 1"),
    flags.DEFINE_string('aspect', None, 'WIDTH:HEIGHT, for the nearest size that SDXL knows'),
    flags.DEFINE_integer('batch', None, 'pictures that are made at once'),
    flags.DEFINE_float('aesthetic_score', None, 'what the refiner is told, 1 to 10'),
    flags.DEFINE_float('negative_aesthetic_score', None, 'the same without the prompt'),
    # Videos.
    flags.DEFINE_integer('fps', None, 'frames per second'),
    flags.DEFINE_float('motion_bucket', None, 'how much should move, 0 to 255'),
    flags.DEFINE_float('cond_aug', None, 'strength of the noise on the picture'),
    flags.DEFINE_integer('num_frames', None, 'frames of the video'),
    flags.DEFINE_integer('decode_overlap', None, 'frames beside a chunk that the decoder sees'),
    # Orbits.
    flags.DEFINE_list('elevations', None, 'degrees: one for all views, or a,b,... for each'),
    flags.DEFINE_list('azimuths', None, 'degrees in order, a,b,... for each view'),
    flags.DEFINE_string('orbit', None, 'a path by name: static or dynamic'),
    flags.DEFINE_float('frame_ratio', None, "the object's share of the frame; 0: as it is"),
    flags.DEFINE_bool('remove_background', None, 'of opaque pictures, with the package rembg'),
    # All.
    flags.DEFINE_string('image', None, 'the picture to begin with; for videos also a folder'),
    flags.DEFINE_integer('steps', None, 'steps of the sampler'),
    flags.DEFINE_integer('seed', None, 'of all noise; 0 by default'),
    flags.DEFINE_integer('height', None, 'pixels'),
    flags.DEFINE_integer('width', None, 'pixels'),
    flags.DEFINE_string('sampler', None, 'another sampler, by name'),
    flags.DEFINE_string('discretization', None, 'other noise levels, by name'),
    flags.DEFINE_string('guider', None, 'another guider, by name'),
    flags.DEFINE_float('scale', None, 'strength of the guidance'),
    flags.DEFINE_integer('decode_chunk', None, 'pictures decoded at once; fewer need less memory'),
)
flags.DEFINE_alias('input', 'image')


def main() -> int:
    from sgm_jax.sampling.run import run

    return run(
        config=CONFIG.value,
        checkpoint=CHECKPOINT.value,
        output=OUTPUT.value,
        prompts=PROMPTS.value,
        refiner=REFINER.value,
        dtype=DTYPE.value,
        mesh=MESH.value,
        mark=WATERMARK.value,
        keep_compiled=CACHE.value,
        **{option.name: option.value for option in OPTIONS},
    )


if __name__ == '__main__':
    cli.run(main)
