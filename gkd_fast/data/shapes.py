"""Signed distance functions of the shapes, and their rasterisation with anti-aliased edges.

Every function takes coordinates x, y (float32 arrays of one shape, y downwards) in units of the shape's
radius and returns the distance to the outline, negative inside. All shapes fit into the unit disc.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Distance = Callable[[Array, Array], Array]


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def _polygon(sides: int) -> Distance:
    angles = np.arange(sides, dtype=np.float32) * (2 * np.pi / sides) - np.pi / 2
    normals = list(zip(np.cos(angles), np.sin(angles), strict=True))
    apothem = np.float32(np.cos(np.pi / sides))

    def distance(x: Array, y: Array) -> Array:
        farthest = normals[0][0] * x + normals[0][1] * y
        for nx, ny in normals[1:]:
            np.maximum(farthest, nx * x + ny * y, out=farthest)
        return farthest - apothem

    return distance


def _star(x: Array, y: Array, *, points: int = 5, waist: float = 0.42) -> Array:
    # Fold the plane into half of one point: the outline is then the line from (1, 0) to the waist's corner.
    radius, sector = np.hypot(x, y), np.float32(2 * np.pi / points)
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / sector))
    corner_x, corner_y = waist * np.cos(sector / 2), waist * np.sin(sector / 2)
    length = np.hypot(1 - corner_x, corner_y)
    nx, ny = np.float32(corner_y / length), np.float32((1 - corner_x) / length)
    return radius * (nx * np.cos(angle) + ny * np.sin(angle)) - nx


def _cross(x: Array, y: Array, *, arm: float = 0.32) -> Array:
    ax, ay = np.abs(x), np.abs(y)
    reach = np.float32(np.sqrt(1 - arm * arm))
    return np.minimum(np.maximum(ax - reach, ay - arm), np.maximum(ax - arm, ay - reach))


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 1, 0.78 - np.hypot(x - 0.46, y))


SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "hexagon": _polygon(6),
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
}


@dataclass(frozen=True)
class Window:
    """The part of the image that a shape touches, with the shape's own coordinates on it.

    rows, columns: slices of the image; u, v: float32 [h,w] coordinates turned with the shape, in pixels.
    """

    rows: slice
    columns: slice
    u: Array
    v: Array

    @property
    def index(self) -> tuple[slice, slice]:
        return self.rows, self.columns


def window(size: tuple[int, int], centre: tuple[float, float], reach: float, angle: float) -> Window:
    """The window of half width `reach` pixels around `centre` (x, y), clipped to an image of `size` (h, w)."""
    (height, width), (cx, cy) = size, centre
    top, bottom = max(0, int(cy - reach)), min(height, int(cy + reach) + 2)
    left, right = max(0, int(cx - reach)), min(width, int(cx + reach) + 2)
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - cx)
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return Window(slice(top, bottom), slice(left, right), cos * x + sin * y, cos * y - sin * x)


def coverage(distance: Array) -> Array:
    """Opacity in [0, 1] of pixels at `distance` (pixels) from an outline: a ramp one pixel wide."""
    return np.clip(0.5 - distance, 0, 1)
