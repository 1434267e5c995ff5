import math

import pytest
import torch
from ops_cases import ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, leaf, pyramid

from gkd_fast import ops

BASE = 12.0  # spreads the small test images over the levels


def paint(boxes, image_index, omega, strides, shapes, images, overlap):
    """Weight maps, box after box, cell after cell."""
    maps = [torch.zeros(images, *shape, dtype=torch.float64) for shape in shapes]
    for i, box in enumerate(boxes.tolist()):
        if any(math.isnan(c) for c in box):
            continue
        width, height = (max(box[k + 2] - box[k] + 1, 0.0) for k in (0, 1))
        level = math.floor(math.log2(math.sqrt(width * height) / BASE + 1e-6))
        level = min(max(level, 0), len(strides) - 1)
        target, weight = maps[level][image_index[i]], omega[level, i].item()
        rows, columns = target.shape
        x1, y1, x2, y2 = (int(max(c, 0.0) / strides[level]) for c in box)
        area = [(y, x) for y in range(y1, min(y2, rows)) for x in range(x1, min(x2, columns))]
        for cell in area:
            target[cell] = max(target[cell].item(), weight) if overlap == "max" else weight
        if not area:
            cell = min(y1, rows - 1), min(x1, columns - 1)
            target[cell] = max(target[cell].item(), weight)
    return maps


def by_loops(student, teacher, boxes, image_index, omega, strides, overlap):
    shapes = [f.shape[2:] for f in student]
    sums = []
    weights = paint(boxes, image_index, omega, strides, shapes, student[0].shape[0], overlap)
    for s, t, weight in zip(student, teacher, weights, strict=True):
        square = (s.double() - t.double()).square().sum(1)
        outside = (weight <= 0).double()
        sums.append(torch.stack([(weight * square).sum(), (outside * square).sum(), weight.sum(), outside.sum()]))
    return torch.stack(sums, dim=1)


@pytest.mark.parametrize("overlap", ["max", "last"])
@pytest.mark.parametrize("boxes", ["random", "odd", "small"])
def test_equals_loops(backend, overlap, boxes):
    if boxes == "odd":
        b, index = ODD_BOXES[:-2], ODD_IMAGES[:-2]  # the loops take too long over the huge one
        b = torch.cat([b, ODD_BOXES[-1:]])
        index = torch.cat([index, ODD_IMAGES[-1:]])
    else:
        b, index = boxes_of(60, extent=(68.0, 52.0) if boxes == "random" else (20.0, 20.0))
    student, teacher = pyramid(dtype=torch.float64), pyramid(dtype=torch.float64, seed=5, channels_last=True)
    omega = torch.rand(3, len(b), dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4
    got = ops.masked_imitation(student, teacher, b, index, omega, STRIDES, overlap=overlap, base_size=BASE)
    want = by_loops(student, teacher, b, index, omega, STRIDES, overlap)
    torch.testing.assert_close(torch.stack(got), want)


def test_small_boxes_meet_areas_in_order(backend):
    """A small box keeps the larger weight, a later area overwrites it, a later small box meets the area."""
    student, teacher = [torch.ones(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)]
    small, area = [1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]
    boxes = torch.tensor([small, area, small, small])
    omega = torch.tensor([[0.9, 0.2, 0.5, 0.4]])
    index = torch.zeros(4, dtype=torch.int64)
    for overlap, weight in (("last", 0.5), ("max", 0.9)):
        sums = ops.masked_imitation(student, teacher, boxes, index, omega, [4], overlap=overlap)
        torch.testing.assert_close(sums.foreground, torch.tensor([weight]))
        torch.testing.assert_close(sums.background_cells, torch.tensor([3.0]))


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_gradcheck(backend, overlap):
    sizes = ((5, 6), (3, 2), (1, 1))
    maps = [leaf(f) for seed in (0, 1) for f in pyramid(dtype=torch.float64, channels=2, sizes=sizes, seed=seed)]
    boxes, index = boxes_of(6, extent=(24.0, 20.0))
    omega = torch.rand(3, 6, dtype=torch.float64)

    def sums(*m):
        out = ops.masked_imitation(m[:3], m[3:], boxes, index, omega, STRIDES, overlap=overlap, base_size=6.0)
        return out.foreground, out.background

    assert torch.autograd.gradcheck(sums, maps)


def test_mixed_dtypes_and_no_boxes(backend):
    student, teacher = [leaf(f) for f in pyramid(dtype=torch.bfloat16)], pyramid(seed=5)
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(3, 0)
    sums = ops.masked_imitation(student, teacher, *none, STRIDES)
    want = torch.stack([(s.float() - t).square().sum() for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(sums.background, want)
    assert sums.foreground.dtype == torch.float32
    assert (sums.foreground == 0).all()
    sums.background.sum().backward()
    assert student[0].grad.dtype == torch.bfloat16


def test_nan_weight_paints_nothing(backend):
    student, teacher = pyramid(), pyramid(seed=5)
    boxes, index = boxes_of(3)
    sums = ops.masked_imitation(student, teacher, boxes, index, torch.full((3, 3), float("nan")), STRIDES)
    assert (sums.foreground_weight == 0).all()
    assert sums.background.isfinite().all()


def test_bad_arguments():
    student = pyramid()
    boxes, index = boxes_of(2)
    with pytest.raises(ValueError, match=r"teacher\[0\]: expected shape \(2, 3, 13, 17\)"):
        ops.masked_imitation(student, pyramid(channels=4), boxes, index, torch.ones(3, 2), STRIDES)
    with pytest.raises(ValueError, match="omega: expected B = 2, got 1"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 1), STRIDES)
    with pytest.raises(ValueError, match="overlap: expected one of max, last, got 'min'"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 2), STRIDES, overlap="min")
