"""Pictures of what a patch discriminator thinks: where it takes a picture for real, and where not."""

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

_COLOURS = colormaps['PiYG']  # pink: fake, green: real
_COLUMNS = 4
_DPI, _BAR_HEIGHT = 100, 48
_OPACITY = 0.8


def logit_maps(
    x: np.ndarray, rec: np.ndarray, real: np.ndarray, fake: np.ndarray
) -> dict[str, np.ndarray]:
    """Sheets of at most four pictures, above them the real ones, below the reconstructions, and a scale.

    Follows sgm's GeneralLPIPSWithDiscriminator.log_images.

    Args:
      x, rec: (n, h, w, 3) in [-1, 1].
      real, fake: the discriminator's logits of each, (n, h', w', 1).

    Returns:
      `vis_logits`, the logits in colours; `vis_logits_blended`, the same over the pictures, the more opaque
      the surer. Both (h, w, 3) in [-1, 1].
    """
    logits = [_enlarged(y[:_COLUMNS], x.shape[1:3]) for y in (real, fake)]
    high = max(float(np.abs(y).max()) for y in logits) or 1.0
    logits = np.concatenate([_row(y) for y in logits])
    pictures = np.concatenate([_row(y[:_COLUMNS]) for y in (x, rec)])
    colours = 2.0 * _COLOURS((logits[..., 0] + high) / (2 * high))[..., :3] - 1.0
    opacity = _OPACITY * np.abs(logits) / high
    bar = _colour_bar(colours.shape[1], high)
    under = lambda sheet: np.concatenate([sheet, bar]).astype(np.float32)
    return {
        'vis_logits': under(colours),
        'vis_logits_blended': under(opacity * colours + (1 - opacity) * pictures),
    }


def _enlarged(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        np.arange(wanted) * given // wanted
        for wanted, given in zip(size, logits.shape[1:3], strict=True)
    )
    return logits[:, rows][:, :, columns]


def _row(pictures: np.ndarray) -> np.ndarray:
    return np.concatenate(list(pictures), 1)


def _colour_bar(width: int, high: float) -> np.ndarray:
    """The scale from -high to high, (_BAR_HEIGHT, width, 3) in [-1, 1]."""
    figure = Figure(figsize=(width / _DPI, _BAR_HEIGHT / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.05, 0.5, 0.9, 0.45))
    norm = Normalize(-high, high)
    ramp = np.linspace(-high, high, 256)[None]
    axes.imshow(ramp, cmap=_COLOURS, norm=norm, aspect='auto', extent=(-high, high, 0, 1))
    axes.set_yticks([])
    axes.tick_params(labelsize=7, pad=1)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32)
    return pixels[:_BAR_HEIGHT, :width] / 127.5 - 1.0
