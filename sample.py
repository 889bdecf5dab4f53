r"""Turns a picture into a video.

python sample.py --checkpoint runs/svd --image photo.jpg --output video.mp4
python sample.py --config configs/svd.py:xt --checkpoint svd_xt.safetensors --image photo.jpg \
    --output video.gif

The checkpoint is the workdir of a run or an sgm .safetensors file; the output's suffix is .mp4, .gif, .webp
or .png (a strip of frames). What is not given is as in the config's `sample`.
"""

from absl import flags

from sgm_jax import cli

CONFIG = cli.define_config("the model: FILE.py[:VARIANT]; by default the checkpoint's own")
CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'a workdir, or an sgm .safetensors file')
IMAGE = flags.DEFINE_string('image', None, 'the picture that the video begins with')
OUTPUT = flags.DEFINE_string('output', None, 'where the video goes: .mp4, .gif, .webp or .png')
OPTIONS = (
    flags.DEFINE_integer('steps', None, 'steps of the sampler'),
    flags.DEFINE_integer('seed', 0, 'of all noise'),
    flags.DEFINE_integer('fps', None, 'frames per second'),
    flags.DEFINE_float('motion_bucket', None, 'how much should move, 0 to 255'),
    flags.DEFINE_float('cond_aug', None, 'strength of the noise on the picture'),
    flags.DEFINE_integer('num_frames', None, 'frames of the video'),
    flags.DEFINE_integer('decode_chunk', None, 'frames decoded at once; fewer need less memory'),
    flags.DEFINE_integer('height', None, 'pixels'),
    flags.DEFINE_integer('width', None, 'pixels'),
)
flags.DEFINE_alias('input', 'image')


def main() -> int:
    from sgm_jax.sampling.run import run

    return run(
        config=CONFIG.value,
        checkpoint=CHECKPOINT.value,
        image=IMAGE.value,
        output=OUTPUT.value,
        **{option.name: option.value for option in OPTIONS},
    )


if __name__ == '__main__':
    cli.run(main)
