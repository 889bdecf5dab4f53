"""Simple objects, drawn from a seed and looked at from any side: ray casting in numpy.

An object is a base in coloured sectors and a few parts that stand on it off its centre, no two alike, so that
every view of it looks different. World coordinates: z up, the object within the unit ball.
"""

import dataclasses

import numpy as np

# Full angle of view, degrees, and the share of the picture's side that the unit ball takes up.
FIELD_OF_VIEW = 33.8
FILL = 0.95
# Light: everywhere, and from above the camera's left shoulder.
AMBIENT = 0.55
_LIGHT = np.array([0.4, 0.5, 0.77])
TEXTURES = ('plain', 'sectors', 'stripes', 'checks')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A primitive: 'sphere', 'box' or 'cylinder' of half sizes `scale`, turned about z, then moved.

    `colors` (n, 3) in [0, 1] are those of its texture; `phase` shifts it; `count` is how fine it is.
    """

    shape: str
    center: np.ndarray
    scale: np.ndarray
    turn: float
    texture: str
    colors: np.ndarray
    phase: float = 0.0
    count: int = 3


def draw_object(seed: int | tuple[int, ...], *, textured: bool = False) -> tuple[Part, ...]:
    """The object of a seed: its base first.

    Seen from above nearly all of it shows in every view, so that one view tells what the others are: a round
    base in two or three sectors, and one or two plain parts. With `textured` bases may be square, and up to
    three parts have patterns: less can be told.
    """
    rng = np.random.default_rng(seed)
    square = textured and rng.uniform() < 0.5
    shape, radius = ('box', 0.66) if square else ('cylinder', 0.86)
    base = Part(
        shape=shape,
        center=np.array([0.0, 0.0, -0.3]),
        scale=np.array([radius, radius, 0.1]),
        turn=rng.uniform(0, 2 * np.pi),
        texture='sectors',
        colors=_vivid(rng, int(rng.integers(2, 5 if textured else 4))),
        phase=rng.uniform(0, 2 * np.pi),
    )
    parts = [base]
    count, where = int(rng.integers(1, 4 if textured else 3)), rng.uniform(0, 2 * np.pi)
    plain = _vivid(rng, count)
    for index in range(count):
        half = np.array([*rng.uniform(0.16, 0.28, 2), rng.uniform(0.16, 0.42)])
        away = rng.uniform(0.3, 0.48)
        parts.append(
            Part(
                shape=rng.choice(['sphere', 'box', 'cylinder']),
                center=np.array([away * np.cos(where), away * np.sin(where), half[2] - 0.2]),
                scale=half,
                turn=rng.uniform(0, 2 * np.pi),
                texture=rng.choice(TEXTURES) if textured else 'plain',
                colors=_vivid(rng, 2) if textured else plain[index : index + 1],
                phase=rng.uniform(0, 2 * np.pi),
                count=int(rng.integers(1, 3)),
            )
        )
        # Not opposite each other: an object with a symmetry has views that are alike.
        where += rng.uniform(1.4, 2.4)
    return tuple(parts)


def _vivid(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours (count, 3) that are far from white, and hues apart."""
    hue = (rng.uniform() + (np.arange(count) + rng.uniform(-0.25, 0.25, count)) / count) % 1.0
    value = rng.uniform(0.6, 1.0, (count, 1))
    fade = rng.uniform(0.0, 0.25, (count, 1))
    wheel = np.clip(np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (fade + (1 - fade) * wheel)


def render(
    parts: tuple[Part, ...],
    elevations: np.ndarray,
    azimuths: np.ndarray,
    size: tuple[int, int],
    *,
    samples: int = 2,
) -> np.ndarray:
    """uint8 (n, height, width, 4): RGBA views of an object, transparent around it.

    Args:
      elevations, azimuths: of the cameras, degrees, (n,).
      size: (height, width); the object fits the shorter one.
      samples: rays per pixel, along one side.
    """
    height, width = size
    origin, rays, axes = _cameras(
        np.asarray(elevations), np.asarray(azimuths), (height * samples, width * samples)
    )
    light = axes @ _LIGHT.astype(np.float32)
    depth = np.full(rays.shape[:2], np.inf, np.float32)
    color = np.zeros_like(rays)
    for part in parts:
        _trace(part, origin, rays, light, depth, color)
    hit = np.isfinite(depth).astype(np.float32)
    blocks = (len(rays), height, samples, width, samples)
    alpha = hit.reshape(blocks).mean((2, 4))
    mixed = (color * hit[..., None]).reshape(*blocks, 3).mean((2, 4))
    straight = mixed / np.maximum(alpha, 1e-6)[..., None]
    views = np.concatenate([straight, alpha[..., None]], -1)
    return (255 * views).round().clip(0, 255).astype(np.uint8)


def _cameras(
    elevations: np.ndarray, azimuths: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 3), directions of the rays (n, pixels, 3), and the cameras' axes (n, 3, 3) as columns."""
    high, around = np.deg2rad(elevations), np.deg2rad(azimuths)
    zero = np.zeros_like(high)
    back = np.stack(
        [np.cos(high) * np.cos(around), np.cos(high) * np.sin(around), np.sin(high)], -1
    )
    right = np.stack([-np.sin(around), np.cos(around), zero], -1)
    up = np.cross(back, right)
    axes = np.stack([-right, up, back], -1)  # the light comes from the left
    tangent = np.tan(np.deg2rad(FIELD_OF_VIEW / 2))
    distance = 1.0 / (FILL * np.sin(np.deg2rad(FIELD_OF_VIEW / 2)))
    height, width = size
    short = min(size)
    down = tangent * (2 * (np.arange(height) + 0.5) - height) / short
    across = tangent * (2 * (np.arange(width) + 0.5) - width) / short
    down, across = (grid.reshape(-1) for grid in np.meshgrid(down, across, indexing='ij'))
    rays = across[:, None] * right[:, None] - down[:, None] * up[:, None] - back[:, None]
    return tuple(x.astype(np.float32) for x in (distance * back, rays, axes))


def _trace(part: Part, origin, rays, light, depth, color) -> None:
    """Writes where a part is nearer than what is there, into depth (n, p) and color (n, p, 3)."""
    away = (origin - part.center).astype(np.float32)
    view, pixel = np.nonzero(_around(part, away, rays))
    if not len(view):
        return
    cos, sin = np.cos(part.turn), np.sin(part.turn)
    turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    inward = (turned / part.scale).astype(np.float32)  # world rows times this: local coordinates
    o, d = (away @ inward)[view], rays[view, pixel] @ inward
    with np.errstate(divide='ignore', invalid='ignore'):
        t, normal = _SHAPES[part.shape](o, d)
    near = (t > 0) & (t < depth[view, pixel])
    view, pixel, t = view[near], pixel[near], t[near]
    point = o[near] + t[:, None] * d[near]
    facing = normal[near] @ inward.T
    facing /= np.linalg.norm(facing, axis=-1, keepdims=True)
    shade = AMBIENT + (1 - AMBIENT) * np.clip((facing * light[view]).sum(-1), 0, 1)
    depth[view, pixel] = t
    color[view, pixel] = _texture(part, point) * shade[:, None]


def _around(part: Part, away, rays) -> np.ndarray:
    """Which rays (n, p) meet the ball around a part: the others need no closer look."""
    radius = np.linalg.norm(part.scale)
    b = (rays @ away[..., None])[..., 0]
    c = (away * away).sum(-1, keepdims=True) - radius**2
    return b * b > (rays * rays).sum(-1) * c


def _sphere(o, d):
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    t = (-b - np.sqrt(b * b - a * c)) / a
    t = np.where(np.isnan(t), np.inf, t).astype(np.float32)
    return t, o + np.where(np.isinf(t), 0, t)[..., None] * d


def _box(o, d):
    lo, hi = (-1 - o) / d, (1 - o) / d
    enter, leave = np.minimum(lo, hi), np.maximum(lo, hi)
    axis, t = enter.argmax(-1), enter.max(-1)
    t = np.where(t <= leave.min(-1), t, np.inf)
    return t, np.eye(3, dtype=np.float32)[axis] * -np.sign(d)


def _cylinder(o, d):
    flat = np.array([1, 1, 0], np.float32)
    a = (d * d * flat).sum(-1)
    b, c = (o * d * flat).sum(-1), (o * o * flat).sum(-1) - 1
    root = np.sqrt(b * b - a * c)
    side, out = (-b - root) / a, (-b + root) / a
    lo, hi = (-1 - o[..., 2]) / d[..., 2], (1 - o[..., 2]) / d[..., 2]
    cap = np.minimum(lo, hi)
    t = np.maximum(side, cap)
    t = np.where(t <= np.minimum(out, np.maximum(lo, hi)), t, np.inf)  # false for a NaN
    point = o + np.where(np.isinf(t), 0, t)[..., None] * d
    top = np.array([0, 0, 1], np.float32) * -np.sign(d[..., 2:])
    return t, np.where((cap >= side)[..., None], top, point * flat)


_SHAPES = {'sphere': _sphere, 'box': _box, 'cylinder': _cylinder}


def _texture(part: Part, point: np.ndarray) -> np.ndarray:
    """Colours (k, 3) at local points (k, 3)."""
    if part.texture == 'plain':
        return part.colors[:1].repeat(len(point), 0)
    around = (np.arctan2(point[:, 1], point[:, 0]) + part.phase) / (2 * np.pi)
    if part.texture == 'sectors':
        index = np.floor(around * len(part.colors))
    elif part.texture == 'stripes':
        index = np.floor(part.count * (point[:, 2] + part.phase))
    else:
        index = np.floor(4 * around) + np.floor(part.count * (point[:, 2] + part.phase))
    return part.colors[index.astype(int) % len(part.colors)]
