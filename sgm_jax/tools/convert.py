"""Weights from one kind of file to another: sgm's files, folders of diffusers, workdirs.

python -m sgm_jax.tools.convert --input sd_xl_base_1.0.safetensors --output sdxl/ --to diffusers
python -m sgm_jax.tools.convert --input hf://stabilityai/sdxl-turbo --output turbo.safetensors --dtype float16
python -m sgm_jax.tools.convert --input runs/svd --output mine.safetensors [--base svd.safetensors]
python -m sgm_jax.tools.convert --input svd.ckpt --output runs/new --to workdir --config configs/svd.py

What goes in is told by its looks; what comes out by --output's suffix, or by --to. Tensors go through one
at a time, but for those of a workdir.
"""

import pathlib

from absl import flags

from sgm_jax import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not at import: other tools have flags of these names."""
    flags.DEFINE_string(
        'input',
        None,
        'a .safetensors or .ckpt file, a diffusers folder, a workdir, or hf://org/repo[/file]',
    )
    flags.DEFINE_string('output', None, 'a .safetensors file, or a new folder')
    flags.DEFINE_enum('to', None, ['sgm', 'diffusers', 'workdir'], 'what to write')
    types = ['keep', 'float32', 'float16', 'bfloat16']
    flags.DEFINE_enum('dtype', 'keep', types, 'the type of the numbers written')
    flags.DEFINE_bool('ema', False, 'take the averaged weights (model_ema.) of an sgm file')
    flags.DEFINE_bool('raw', False, 'take the trained weights of a workdir, not their averages')
    flags.DEFINE_string('base', None, 'where the frozen parts of a workdir are')
    cli.define_config('of the model: needed for --to workdir')


def main() -> int:
    from sgm_jax.errors import UserError
    from sgm_jax.interop import write_diffusers, write_sgm
    from sgm_jax.interop.tensors import DTYPES
    from sgm_jax.tools import conversions

    for name in ('input', 'output'):
        if not FLAGS[name].value:
            raise UserError(f'give --{name}; --help lists the flags')
    kind = kind_of(FLAGS.output, FLAGS.to)
    if kind == 'workdir' and FLAGS.dtype not in ('keep', 'float32'):
        raise UserError(f'--dtype={FLAGS.dtype}: a workdir holds float32; leave it out')
    output = pathlib.Path(FLAGS.output).expanduser()
    # Before the work, not after it.
    conversions.check_place(output, folder=kind != 'sgm')
    source = conversions.open_source(
        FLAGS.input, config=FLAGS.config, base=FLAGS.base, ema=FLAGS.ema, raw=FLAGS.raw
    )
    if kind == 'workdir':
        conversions.write_workdir(output, source)
    else:
        tensors = conversions.cast(source.tensors, DTYPES.get(FLAGS.dtype))
        if kind == 'sgm':
            write_sgm(output, tensors)
        else:
            write_diffusers(output, tensors, hints=conversions.hints_for(source))
    print(f'wrote {output}: {len(source.tensors)} tensors of {FLAGS.input}')
    return 0


def kind_of(output: str, wanted: str | None) -> str:
    """What --output and --to ask for: 'sgm', 'diffusers' or 'workdir'."""
    from sgm_jax.errors import UserError

    file = output.endswith('.safetensors')
    if file and wanted in (None, 'sgm'):
        return 'sgm'
    if file or wanted == 'sgm' or pathlib.Path(output).suffix in ('.ckpt', '.pt', '.bin'):
        raise UserError(
            f'--output={output}: sgm files are written as .safetensors, and nothing else is; give a name '
            'with that suffix, or a folder and --to'
        )
    if wanted is None:
        raise UserError(
            f'--output={output} is a folder; say of which kind: --to=diffusers or --to=workdir'
        )
    return wanted


if __name__ == '__main__':
    define_flags()
    cli.run(main)
