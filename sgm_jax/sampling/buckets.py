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


def nearest(
    aspect: str, base: tuple[int, int] = (1024, 1024), multiple: int = 64
) -> tuple[int, int]:
    """The bucket whose shape is nearest to `aspect`, scaled for a model whose own size is `base`.

    Args:
      aspect: 'WIDTH:HEIGHT', such as '16:9'.
      base: (height, width) of the model's square; SDXL's buckets are scaled by its side over 1024.
      multiple: what the scaled sides are rounded to.

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
    scale = (base[0] * base[1]) ** 0.5 / 1024
    return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in bucket)
