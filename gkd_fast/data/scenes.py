"""The embedded data set: scenes drawn on the fly from a seed, with no files and no downloads.

The class of an object is its shape; its hue and its pattern hint at the class and mislead in a quarter of the objects.
Size, angle and colours vary. Some objects are small, blurred or occluded, and each instance says so: a robust weight
can be compared across conditions.
"""

import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from gkd_fast.data import textures
from gkd_fast.data.annotated import Target, coco_ground_truth, make_target
from gkd_fast.data.shapes import SHAPES, Window, coverage, window
from gkd_fast.errors import InputError

CONDITIONS = ("clean", "small", "blurred", "occluded")
_CLEAN, _SMALL, _BLURRED, _OCCLUDED = range(len(CONDITIONS))
_FREQUENCY = (0.45, 0.17, 0.17, 0.21)

# Radii in pixels of a scene whose shorter side is 192; they scale with the scene.
_SMALL_RADIUS = (5.5, 8.5)
_RADIUS = (12.0, 38.0)
# How often an object wears its class's own hue, and its own pattern; the hue's standard deviation on a circle of 1.
_TYPICAL = 0.75
_HUE_SPREAD = 0.05
# An object with less than this fraction in view counts as occluded, whatever hides it.
_IN_VIEW = 0.85

_DISTANCES = tuple(SHAPES.values())


@dataclass(frozen=True)
class _Layer:
    """One thing painted on the scene. label 0 is an occluding bar; distance: float32 [h,w] pixels to the outline."""

    label: int
    centre: tuple[float, float]
    radius: float
    condition: int
    window: Window
    distance: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels, tight around the pixels whose centre is inside the outline."""
        inside = self.distance < 0
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        left, top = self.window.columns.start, self.window.rows.start
        return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1


class Scenes:
    """Scene `i` depends on (`seed`, `i`, `size`) alone.

    Args:
        count: number of scenes.
        size: (height, width) in pixels, at least 64 each.
        seed: seed of the whole set; another seed gives another set.
    """

    classes: tuple[str, ...] = tuple(SHAPES)

    def __init__(self, count: int, *, size: tuple[int, int] = (192, 192), seed: int = 0) -> None:
        if count < 1:
            raise InputError(f"scenes: expected a count of at least 1, got {count}")
        if min(size) < 64:
            raise InputError(f"scenes: expected a size of at least 64 x 64 pixels, got {tuple(size)}")
        if seed < 0:
            raise InputError(f"scenes: expected a seed of at least 0, got {seed}")
        self.count, self.size, self.seed = count, (int(size[0]), int(size[1])), seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        """The image (uint8 [3,H,W]) and its target, with `condition` int64 [B] into CONDITIONS."""
        index = self._checked(index)
        layers = _layout(np.random.default_rng((self.seed, index, 0)), self.size)
        image = _paint(np.random.default_rng((self.seed, index, 1)), self.size, layers)
        boxes, labels, conditions = _annotations(layers)
        target = make_target(boxes, labels, image_id=index, size=self.size)
        target["condition"] = torch.from_numpy(conditions)
        return tv_tensors.Image(torch.from_numpy(image)), target

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all scenes in COCO format; only outlines are computed, nothing is painted."""
        images, annotations = [], []
        for index in range(self.count):
            layers = _layout(np.random.default_rng((self.seed, index, 0)), self.size)
            boxes, labels, _ = _annotations(layers)
            images.append((index, self.size, f"scene_{self.seed}_{index:06d}"))
            annotations.append((boxes, labels))
        return coco_ground_truth(self.classes, images, annotations)

    def _checked(self, index: int) -> int:
        if not 0 <= (index := operator.index(index)) < self.count:
            raise IndexError(f"expected an index in [0, {self.count}), got {index}")
        return index


def _annotations(layers: list[_Layer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes float32 [B,4], labels int64 [B] and conditions int64 [B] of the objects among the layers."""
    objects = [layer for layer in layers if layer.label]
    boxes = np.array([layer.box for layer in objects], dtype=np.float32).reshape(-1, 4)
    labels = np.array([layer.label for layer in objects], dtype=np.int64)
    return boxes, labels, np.array([layer.condition for layer in objects], dtype=np.int64)


# Layout: what stands where


def _layout(rng: np.random.Generator, size: tuple[int, int]) -> list[_Layer]:
    """Two to seven objects and the bars before them, in painting order."""
    unit, wanted = min(size) / 192, int(rng.integers(2, 8))
    layers: list[_Layer] = []
    placed: list[tuple[float, float, float]] = []
    while len(placed) < wanted:
        condition = int(rng.choice(len(CONDITIONS), p=_FREQUENCY))
        low, high = _SMALL_RADIUS if condition == _SMALL else _RADIUS
        radius = unit * low * (high / low) ** rng.random()
        circle = _free_circle(rng, size, radius, placed)
        if circle is None:
            break
        placed.append(circle)
        layers.append(_object(rng, size, circle, condition))
        if condition == _OCCLUDED:
            occluder = _occluder(rng, size, placed) if len(placed) < wanted else None
            if occluder is not None:
                placed.append(occluder)
                layers.append(_object(rng, size, occluder, _CLEAN))
            else:
                layers.append(_bar(rng, size, circle))
    return _mark_occluded(layers, size)


def _free_circle(
    rng: np.random.Generator, size: tuple[int, int], radius: float, placed: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """A circle (x, y, radius) apart from those placed, shrunk until it fits; None if nothing fits."""
    height, width = size
    for _ in range(24):
        margin = 0.85 * radius
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(np.hypot(x - px, y - py) > 0.95 * (radius + pr) for px, py, pr in placed):
            return float(x), float(y), radius
        radius = max(0.94 * radius, min(radius, _SMALL_RADIUS[1] * min(size) / 192))
    return None


def _occluder(
    rng: np.random.Generator, size: tuple[int, int], placed: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """A circle that covers part of the last one placed and stays clear of the others."""
    *others, (x, y, radius) = placed
    for _ in range(6):
        own = radius * rng.uniform(0.75, 1.1)
        turn, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.85, 1.1)
        ox, oy = x + away * np.cos(turn), y + away * np.sin(turn)
        inside = own < ox < size[1] - own and own < oy < size[0] - own
        if inside and all(np.hypot(ox - px, oy - py) > 0.9 * (own + pr) for px, py, pr in others):
            return float(ox), float(oy), float(own)
    return None


def _object(
    rng: np.random.Generator, size: tuple[int, int], circle: tuple[float, float, float], condition: int
) -> _Layer:
    x, y, radius = circle
    label = int(rng.integers(len(_DISTANCES))) + 1
    at = window(size, (x, y), radius + 1, rng.uniform(0, 2 * np.pi))
    squeeze = np.float32(rng.uniform(0.8, 1.0))
    scaled = at.u / np.float32(radius), at.v / (np.float32(radius) * squeeze)
    distance = _DISTANCES[label - 1](*scaled) * np.float32(radius)
    return _Layer(label, (x, y), radius, condition, at, distance)


def _bar(rng: np.random.Generator, size: tuple[int, int], circle: tuple[float, float, float]) -> _Layer:
    """A bar across the circle that hides a third to a half of it."""
    x, y, radius = circle
    turn, aside = rng.uniform(0, 2 * np.pi), radius * rng.uniform(-0.35, 0.35)
    centre = (x - aside * np.sin(turn), y + aside * np.cos(turn))
    half_length, half_width = 1.35 * radius, radius * rng.uniform(0.28, 0.42)
    at = window(size, centre, 1.45 * radius, turn)
    distance = np.maximum(np.abs(at.u) - np.float32(half_length), np.abs(at.v) - np.float32(half_width))
    return _Layer(0, centre, radius, _CLEAN, at, distance)


def _mark_occluded(layers: list[_Layer], size: tuple[int, int]) -> list[_Layer]:
    """Settles who is occluded by the fraction of each object that the layers after it leave in view."""
    open_ = np.ones(size, dtype=np.float32)
    settled = []
    for layer in reversed(layers):
        opacity = coverage(layer.distance)
        in_view = float((opacity * open_[layer.window.index]).sum() / opacity.sum())
        open_[layer.window.index] *= 1 - opacity
        condition = layer.condition
        if in_view < _IN_VIEW:
            condition = _OCCLUDED
        elif condition == _OCCLUDED:
            condition = _CLEAN
        settled.append(replace(layer, condition=condition))
    return settled[::-1]


# Painting


def _paint(rng: np.random.Generator, size: tuple[int, int], layers: list[_Layer]) -> np.ndarray:
    """The scene as uint8 [3,H,W]."""
    canvas = textures.background(rng, size)
    for _ in range(int(rng.integers(3, 12))):
        _clutter(rng, canvas, size)
    for layer in layers:
        _blend(rng, canvas, layer)
    grain = rng.standard_normal((3, *size), dtype=np.float32) * np.float32(rng.uniform(0.004, 0.04))
    return np.clip((canvas + grain) * 255 + np.float32(0.5), 0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, canvas: np.ndarray, size: tuple[int, int]) -> None:
    """A half transparent stroke or speck that belongs to no class."""
    unit = min(size) / 192
    length = rng.uniform(0, 26) * unit if rng.random() < 0.7 else 0.0
    thickness = rng.uniform(0.7, 2.6) * unit
    centre = (rng.uniform(0, size[1] - 1), rng.uniform(0, size[0] - 1))
    at = window(size, centre, length + thickness + 1, rng.uniform(0, np.pi))
    beyond = np.maximum(np.abs(at.u) - np.float32(length), 0)
    opacity = coverage(np.hypot(beyond, at.v) - np.float32(thickness)) * np.float32(rng.uniform(0.3, 0.9))
    part = canvas[:, *at.index]
    part += opacity * (textures.colour(rng, (0.0, 0.6), (0.1, 0.95)) - part)


def _surface(rng: np.random.Generator, layer: _Layer) -> np.ndarray:
    """The layer's own colours on its window, float32 [3,h,w]: two colours, a pattern, side light, a dark rim."""
    at, radius = layer.window, layer.radius
    hue = None
    if layer.label and rng.random() < _TYPICAL:
        hue = (layer.label - 1) / len(_DISTANCES) + rng.normal(0, _HUE_SPREAD)
    first = textures.colour(rng, (0.5, 1.0), (0.35, 1.0), hue)
    second = textures.colour(rng, (0.0, 1.0), (0.15, 1.0))
    kinds = textures.PATTERNS
    favourite = rng.random() < _TYPICAL and layer.label > 0
    kind = kinds[layer.label % len(kinds)] if favourite else kinds[rng.integers(len(kinds))]
    turn = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    period = max(4.0, radius * rng.uniform(0.3, 0.9))
    mix = partial(textures.pattern, kind, period=period, phase=rng.uniform(0, 6.28))
    painted = first + (second - first) * mix(cos * at.u + sin * at.v, cos * at.v - sin * at.u)
    light = 1 + np.float32(rng.uniform(-0.25, 0.25) / radius) * (at.u + at.v)
    rim = np.clip(1 + layer.distance * np.float32(1 / max(1.5, 0.12 * radius)), 0, 1)
    return painted * light * (1 - np.float32(rng.uniform(0.1, 0.5)) * rim)


def _blend(rng: np.random.Generator, canvas: np.ndarray, layer: _Layer) -> None:
    surface, opacity = _surface(rng, layer), coverage(layer.distance)
    if layer.condition != _BLURRED:
        part = canvas[:, *layer.window.index]
        part += opacity * (surface - part)
        return
    # Blur colours weighted by opacity together with the opacity, on a window wide enough for the blur's skirt.
    sigma = max(1.6, layer.radius * rng.uniform(0.08, 0.15))
    rows, columns = layer.window.rows, layer.window.columns
    skirt = int(3 * sigma) + 1
    above, left = min(skirt, rows.start), min(skirt, columns.start)
    below, right = min(skirt, canvas.shape[1] - rows.stop), min(skirt, canvas.shape[2] - columns.stop)
    stacked = np.concatenate([surface * opacity, opacity[None]])
    blurred = textures.blur(np.pad(stacked, ((0, 0), (above, below), (left, right))), sigma)
    part = canvas[:, rows.start - above : rows.stop + below, columns.start - left : columns.stop + right]
    part += blurred[:3] - part * np.minimum(blurred[3], 1)
