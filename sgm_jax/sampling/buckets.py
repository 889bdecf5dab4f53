"""The sizes that SDXL was trained on: about a megapixel each, in steps of 64."""

import math

from sgm_jax.errors import UserError

# (height, width). Source: Podell et al. 2023 (SDXL, arXiv:2307.01952), appendix I.
SDXL = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856),
    (576, 1792), (576, 1728), (576, 1664),
    (640, 1600), (640, 1536),
    (704, 1472), (704, 1408), (704, 1344),
    (768, 1344), (768, 1280),
    (832, 1216), (832, 1152),
    (896, 1152), (896, 1088),
    (960, 1088), (960, 1024),
    (1024, 1024), (1024, 960),
    (1088, 960), (1088, 896),
    (1152, 896), (1152, 832),
    (1216, 832),
    (1280, 768), (1344, 768),
    (1408, 704), (1472, 704),
    (1536, 640), (1600, 640),
    (1664, 576), (1728, 576), (1792, 576),
    (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip


def around(base: tuple[int, int], multiple: int = 64) -> tuple[tuple[int, int], ...]:
    """SDXL's shapes for a model of another size: about the area of `base`, sides in steps of `multiple`.

    Shapes that become the same are there once.
    """
    if base[0] * base[1] == 1024**2 and multiple == 64:
        return SDXL
    ratios = [width / height for height, width in SDXL]
    return tuple(dict.fromkeys(_of_area(base, ratio, multiple) for ratio in ratios))


def nearest(
    aspect: str, base: tuple[int, int] = (1024, 1024), multiple: int = 64
) -> tuple[int, int]:
    """The bucket whose shape is nearest to `aspect`; for models of another size, that shape of their area.

    Args:
      aspect: 'WIDTH:HEIGHT', such as '16:9'.
      base: the model's own (height, width).
      multiple: what sides are rounded to, where they are not SDXL's.

    Raises:
      UserError: not of that form.
    """
    try:
        width, height = (float(side) for side in aspect.split(':'))
        ratio = width / height
        if not ratio > 0:
            raise ValueError
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f'aspect is {aspect!r}; give WIDTH:HEIGHT, such as 16:9') from error
    bucket = min(SDXL, key=lambda size: abs(math.log(size[1] / size[0] / ratio)))
    if base[0] * base[1] == 1024**2:
        return bucket
    return _of_area(base, ratio, multiple)


def _of_area(base: tuple[int, int], ratio: float, multiple: int) -> tuple[int, int]:
    area = base[0] * base[1]
    height, width = (area / ratio) ** 0.5, (area * ratio) ** 0.5
    whole = lambda side: max(multiple, math.floor(side / multiple + 0.5) * multiple)
    return whole(height), whole(width)
