"""How well anchors fit: the anchors are the detector's, the overlap is torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.anchor_fit import (
    MATCH,
    best_anchors,
    levels_of,
    unmatched,
    unmatched_by_size,
    with_anchor_size,
)

SPECS = [
    DetectorSpec(detector=detector, backbone="mobilenet_v2", width=0.1, channels=16, head=16, anchor_size=size)
    for detector in ("faster_rcnn", "retinanet")
    for size in (8, 24)
]


def centred(shapes: np.ndarray) -> torch.Tensor:
    half = torch.from_numpy(shapes) / 2
    return torch.cat([-half, half], dim=1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.detector}-{spec.anchor_size}")
def test_levels_are_those_of_the_built_detector(spec: DetectorSpec) -> None:
    detector = build_detector(spec, 3)
    generator = detector.rpn.anchor_generator if spec.detector == "faster_rcnn" else detector.anchor_generator
    levels = levels_of(spec)
    for level, cell in zip(levels, generator.cell_anchors, strict=True):
        np.testing.assert_array_equal(level.shapes, (cell[:, 2:] - cell[:, :2]).numpy())
        assert level.ratios == (0.5, 1.0, 2.0)
    image = torch.zeros(1, 3, 256, 256)
    with torch.no_grad():
        maps = detector.backbone(image).values()
    assert [level.stride for level in levels] == [256 // own.shape[-1] for own in maps]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.detector}-{spec.anchor_size}")
def test_the_best_overlap_is_that_of_all_anchors(spec: DetectorSpec) -> None:
    shapes = np.exp(np.random.default_rng(0).uniform(0, 6, (200, 2)))
    levels = levels_of(spec)
    every = np.concatenate([level.shapes for level in levels])
    of_level = np.repeat(np.arange(len(levels)), [len(level.shapes) for level in levels])
    overlap = box_iou(centred(shapes), centred(every)).numpy()
    best, level = best_anchors(shapes, levels)
    np.testing.assert_allclose(best, overlap.max(1), rtol=1e-12)
    np.testing.assert_array_equal(level, of_level[overlap.argmax(1)])
    assert unmatched(shapes, spec) == (overlap.max(1) < MATCH).mean()


def test_boxes_of_half_the_smallest_anchor_are_not_matched() -> None:
    spec = with_anchor_size(SPECS[0], 32)
    assert unmatched(np.full((4, 2), 16.0), spec) == 1.0
    assert unmatched(np.full((4, 2), 16.0), with_anchor_size(spec, 16)) == 0.0
    assert unmatched(np.zeros((0, 2)), spec) == 0.0


def test_settings_are_compared_on_a_part_of_very_many_boxes() -> None:
    shapes = np.tile([[16.0, 16.0], [4.0, 4.0]], (60_000, 1))
    assert unmatched_by_size(shapes[:2], SPECS[0], (16, 64)) == {16: 0.5, 64: 1.0}
    share = unmatched_by_size(shapes, SPECS[0], (16,))[16]
    assert share == pytest.approx(0.5, abs=0.003)
    assert unmatched_by_size(shapes, SPECS[0], (16,))[16] == share
