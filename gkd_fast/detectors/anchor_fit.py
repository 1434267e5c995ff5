"""How well the anchors of a detector fit the shapes of boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gkd_fast.detectors import DetectorSpec
from gkd_fast.detectors.backbones import PYRAMID_STRIDES
from gkd_fast.detectors.build import anchors_of

MATCH = 0.5
"""Least IoU of an anchor that fits a box: RetinaNet's threshold. Faster R-CNN's proposal network asks for 0.7 and, as
RetinaNet, takes the best anchor of a box that none fits."""

MOST_COMPARED = 100_000
"""Boxes that settings are compared with: shares are then right to some tenths of a percent."""

ANCHOR_SIZES = (8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Level:
    """stride: in pixels. shapes: float64 [A,2], width and height of its anchors in pixels. sides, ratios: that they
    are made of, in pixels and as height / width; where anchors are rounded, their shapes are not quite these."""

    stride: int
    shapes: np.ndarray
    sides: tuple[float, ...]
    ratios: tuple[float, ...]


def levels_of(spec: DetectorSpec) -> list[Level]:
    """The levels of a detector's pyramid, from the finest on, with the anchors as they are built."""
    generator = anchors_of(spec)
    first = PYRAMID_STRIDES[spec.detector][0]
    cells = [cell.double().numpy() for cell in generator.cell_anchors]
    return [
        Level(first * 2**number, cell[:, 2:] - cell[:, :2], tuple(map(float, sizes)), tuple(map(float, ratios)))
        for number, (cell, sizes, ratios) in enumerate(
            zip(cells, generator.sizes, generator.aspect_ratios, strict=True)
        )
    ]


def best_anchors(shapes: np.ndarray, levels: list[Level]) -> tuple[np.ndarray, np.ndarray]:
    """The largest IoU that any anchor has with each box where both share their centre, and that anchor's level.

    Centres lie on a grid of strides, so that an anchor of the image may fit less well; none fits better.

    Args:
        shapes: float64 [B,2], width and height in pixels of resized images.
        levels: with anchors in the same pixels.

    Returns:
        float64 [B], int64 [B].
    """
    best, level = np.zeros(len(shapes)), np.zeros(len(shapes), dtype=np.int64)
    for number, own in enumerate(levels):
        for width, height in own.shapes:
            overlap = _overlap(shapes, width, height)
            level[overlap > best] = number
            np.maximum(best, overlap, out=best)
    return best, level


def _overlap(shapes: np.ndarray, width: float, height: float) -> np.ndarray:
    """The IoU of boxes [B,2] and an anchor of the same centre, float64 [B]."""
    common = np.minimum(shapes[:, 0], width) * np.minimum(shapes[:, 1], height)
    return common / (shapes[:, 0] * shapes[:, 1] + width * height - common)


def unmatched(shapes: np.ndarray, spec: DetectorSpec) -> float:
    """The share of boxes that no anchor fits; 0 where there are no boxes."""
    left = shapes
    for level in levels_of(spec):
        for width, height in level.shapes:
            left = left[_overlap(left, width, height) < MATCH]
    return len(left) / len(shapes) if len(shapes) else 0.0


def unmatched_by_size(shapes: np.ndarray, spec: DetectorSpec, sizes: Sequence[int]) -> dict[int, float]:
    """The share of boxes that no anchor fits, by the side of the smallest anchors.

    Args:
        shapes: float64 [B,2], width and height in pixels of resized images; of more than MOST_COMPARED a random part
            counts.
        spec: of the detector.
        sizes: to compare, in pixels.
    """
    some = shapes
    if len(shapes) > MOST_COMPARED:
        some = np.random.default_rng(0).choice(shapes, MOST_COMPARED, replace=False)
    return {size: unmatched(some, with_anchor_size(spec, size)) for size in sizes}


def with_anchor_size(spec: DetectorSpec, size: int) -> DetectorSpec:
    """The same detector with smallest anchors of another side."""
    return dataclasses.replace(spec, anchor_size=size)
