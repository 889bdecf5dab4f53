"""A run's curves as a picture, from its history: python -m sgm_jax.tools.curves --workdir runs/svd

--names=loss,learning_rate chooses among the numbers, of which all that vary are drawn by default. Each
value is a faint dot; the line is their running average over --smooth steps.
"""

import math
import pathlib

import numpy as np
from absl import flags

from sgm_jax import cli

FLAGS = flags.FLAGS
_COLUMNS, _WIDTH, _HEIGHT = 3, 4.2, 2.8  # inches


def define_flags() -> None:
    """Not at import: other tools have flags of these names."""
    flags.DEFINE_string('workdir', None, 'folder of the run')
    flags.DEFINE_list('names', None, 'numbers to draw, by name; by default all that vary')
    flags.DEFINE_integer('smooth', 50, 'steps of the running average', lower_bound=1)
    flags.DEFINE_string('output', None, 'PNG to write; by default WORKDIR/curves.png')


def main() -> int:
    from sgm_jax.errors import UserError
    from sgm_jax.training import history

    if not FLAGS.workdir:
        raise UserError('give --workdir FOLDER, of a run')
    found = history.read(FLAGS.workdir)
    unknown = [name for name in FLAGS.names or () if name not in found]
    if unknown:
        raise UserError(f'there is no {unknown[0]!r}; there are: {", ".join(sorted(found))}')
    names = FLAGS.names or [name for name, values in found.items() if len(set(values.values())) > 1]
    if not names:
        raise UserError(f'{FLAGS.workdir}: no number has changed yet; train some steps first')
    output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.workdir) / 'curves.png')
    draw({name: found[name] for name in names}, output, smooth=FLAGS.smooth)
    print(f'{len(names)} curves: {output}')
    return 0


def draw(curves: dict[str, dict[int, float]], output: pathlib.Path, *, smooth: int = 50) -> None:
    """Writes a PNG of values by step, a panel for each name.

    Raises:
      UserError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sgm_jax.errors import UserError
    from sgm_jax.interop.whole_files import whole

    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, (name, values) in zip(panels, curves.items(), strict=False):
        steps, heights = np.array(list(values)), np.array(list(values.values()))
        panel.plot(steps, heights, '.', markersize=2, alpha=0.25, color='tab:blue')
        panel.plot(steps, running_average(heights, smooth), color='tab:blue')
        panel.set_title(name)
        panel.set_xlabel('step')
        panel.grid(alpha=0.3)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    try:
        with whole(output) as file:
            figure.savefig(file, format='png', dpi=110)
    except OSError as error:
        raise UserError(f'{output} cannot be written ({error.strerror or error})') from error


def running_average(values: np.ndarray, count: int) -> np.ndarray:
    """The mean of each value and up to `count` - 1 before it; those that are not finite are left out."""
    finite = np.isfinite(values)
    totals = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    before = lambda sums: np.concatenate([np.zeros(count), sums])[: len(sums)]
    sums, seen = totals - before(totals), counts - before(counts)
    return np.where(seen > 0, sums / np.maximum(seen, 1), np.nan)


if __name__ == '__main__':
    define_flags()
    cli.run(main)
