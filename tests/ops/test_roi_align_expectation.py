"""RoIAlign as its definition reads: bilinear interpolation at every sample point, one by one.

torchvision holds its own RoIAlign against such an expectation, over both alignments and sampling ratios.
"""

import math

import numpy as np
import pytest
import torch
from ops_cases import leaf

from gkd_fast import ops


def interpolate(plane, y, x):
    """Bilinear interpolation of a map [H,W] at one point; points up to a cell outside see the border, others 0."""
    height, width = plane.shape
    if not (-1.0 <= y <= height and -1.0 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = plane[top, left] * (1 - across) + plane[top, right] * across
    lower = plane[bottom, left] * (1 - across) + plane[bottom, right] * across
    return upper * (1 - down) + lower * down


def expectation(feature, boxes, image_index, stride, bins, ratio, aligned):
    """Pooled [B,C,R,R] of one level, in float64."""
    out = np.zeros((len(boxes), feature.shape[1], bins, bins))
    shift = 0.5 if aligned else 0.0
    for b, (box, image) in enumerate(zip(boxes, image_index, strict=True)):
        x1, y1, x2, y2 = (c / stride - shift for c in box)
        height, width = (side if aligned else max(side, 1.0) for side in (y2 - y1, x2 - x1))
        step_y, step_x = height / bins, width / bins
        count_y, count_x = (ratio or math.ceil(step) for step in (step_y, step_x))
        for i in range(bins):
            for j in range(bins):
                ys = [y1 + (i + (k + 0.5) / count_y) * step_y for k in range(count_y)]
                xs = [x1 + (j + (k + 0.5) / count_x) * step_x for k in range(count_x)]
                for channel, plane in enumerate(feature[image]):
                    total = sum(interpolate(plane, y, x) for y in ys for x in xs)
                    out[b, channel, i, j] = total / max(count_y * count_x, 1)
    return out


BOXES = [
    [0, 0, 9, 9],
    [0, 5, 4, 9],
    [5, 5, 9, 9],
    [2.3, 1.7, 7.1, 5.2],
    [-3, -2, 4, 3],
    [8, 8, 14, 13],
    [4, 4, 4.5, 4.5],
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_point_by_point(backend, stride, ratio, aligned, layout):
    feature = torch.randn(2, 3, 10, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(BOXES) * stride
    image_index = torch.arange(len(BOXES)) % 2
    want = expectation(feature.numpy(), boxes.tolist(), image_index.tolist(), stride, 5, ratio, aligned)
    got = ops.multiscale_roi_align(
        [feature.contiguous(memory_format=layout)],
        boxes,
        image_index,
        [stride],
        output_size=5,
        sampling_ratio=ratio,
        aligned=aligned,
    )
    # The boxes' coordinates are float32; the interpolation is in float64.
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-5, atol=1e-5)


def test_aligned_samples_the_centre_of_a_cell(backend):
    feature = torch.arange(42.0).view(1, 1, 6, 7)
    cell = torch.tensor([[3.0, 2.0, 4.0, 3.0]])
    pooled = ops.multiscale_roi_align(
        [feature], cell, torch.tensor([0]), [1], output_size=1, sampling_ratio=1, aligned=True
    )
    assert pooled.item() == feature[0, 0, 2, 3]


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_gradient_of_a_linear_map_is_its_transpose(backend, ratio):
    features = [leaf(torch.randn(1, 2, 9, 8, dtype=torch.float64))]
    boxes, index = torch.tensor(BOXES), torch.zeros(len(BOXES), dtype=torch.int64)

    def pool(maps):
        return ops.multiscale_roi_align(maps, boxes, index, [1], output_size=3, sampling_ratio=ratio)

    weight = torch.randn(len(BOXES), 2, 3, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(pool(features), features, weight)
    direction = torch.randn_like(gradient)
    torch.testing.assert_close((gradient * direction).sum(), (pool([direction]) * weight).sum())
