import math

import pytest
import torch
from ops_cases import ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, leaf, pyramid

from gkd_fast import ops


def by_loops(features, boxes, image_index, strides, negative="clamp"):
    """Cell by cell, as the formula reads."""
    out = torch.zeros(len(features), len(boxes), features[0].shape[1], dtype=torch.float64)
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        height, width = feature.shape[2:]
        for i, box in enumerate(boxes.tolist()):
            if any(math.isnan(c) for c in box):
                out[level, i] = float("nan")
                continue
            x1, y1, x2, y2 = (abs(c) if negative == "mirror" else c for c in box)
            cells = []
            for low, high, size in ((y1, y2, height), (x1, x2, width)):
                first = min(max(math.floor(low / stride), 0), size - 1)
                last = max(min(max(math.floor(high / stride), 0), size - 1), first)
                cells.append(range(first, last + 1))
            total = sum(feature[image_index[i], :, y, x].double() for y in cells[0] for x in cells[1])
            out[level, i] = total / (len(cells[0]) * len(cells[1]))
    return out


@pytest.mark.parametrize("negative", ["clamp", "mirror"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("boxes", ["random", "odd"])
def test_equals_loops(reference_backend, negative, channels_last, boxes):
    features = pyramid(dtype=torch.float64, channels_last=channels_last)
    b, index = boxes_of(20) if boxes == "random" else (ODD_BOXES, ODD_IMAGES)
    got = ops.box_mean_pool(features, b, index, STRIDES, negative=negative)
    torch.testing.assert_close(got, by_loops(features, b, index, STRIDES, negative), equal_nan=True)


def test_gradcheck(reference_backend):
    features = [leaf(f) for f in pyramid(dtype=torch.float64, channels=2, sizes=((5, 6), (3, 2), (1, 1)))]
    boxes, index = boxes_of(6, extent=(24.0, 20.0))
    assert torch.autograd.gradcheck(lambda *f: ops.box_mean_pool(f, boxes, index, STRIDES), features)


def test_nan_box_passes_no_gradient(reference_backend):
    features = [leaf(f) for f in pyramid()]
    ops.box_mean_pool(features, ODD_BOXES[-1:], ODD_IMAGES[-1:], STRIDES).sum().backward()
    assert all((f.grad == 0).all() for f in features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_the_rounded_truth(reference_backend, dtype):
    features = pyramid(dtype=dtype)
    boxes, index = boxes_of(20)
    got = ops.box_mean_pool(features, boxes, index, STRIDES)
    assert got.dtype == dtype
    truth = ops.box_mean_pool([f.double() for f in features], boxes, index, STRIDES)
    torch.testing.assert_close(got, truth.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("images", [0, 2])
def test_no_boxes(reference_backend, images):
    features = [leaf(f) for f in pyramid(images=images)]
    out = ops.box_mean_pool(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), STRIDES)
    assert out.shape == (3, 0, 3)
    out.sum().backward()


def test_bad_arguments():
    features = pyramid()
    boxes, index = boxes_of(4)
    with pytest.raises(TypeError, match=r"boxes: expected torch.float32, got torch.float64"):
        ops.box_mean_pool(features, boxes.double(), index, STRIDES)
    with pytest.raises(TypeError, match=r"image_index: expected torch.int64"):
        ops.box_mean_pool(features, boxes, index.int(), STRIDES)
    with pytest.raises(ValueError, match="image_index: expected B = 4, got 3"):
        ops.box_mean_pool(features, boxes, index[:3], STRIDES)
    with pytest.raises(ValueError, match="strides: expected levels = 3, got 2"):
        ops.box_mean_pool(features, boxes, index, STRIDES[:2])
    with pytest.raises(ValueError, match="negative: expected one of clamp, mirror, got 'wrap'"):
        ops.box_mean_pool(features, boxes, index, STRIDES, negative="wrap")
    with pytest.raises(TypeError, match="features: expected a list of tensors"):
        ops.box_mean_pool(features[0], boxes, index, STRIDES)
    with pytest.raises(ValueError, match=r"features\[1\]: expected C = 3, got 2"):
        ops.box_mean_pool([features[0], features[1][:, :2]], boxes, index, STRIDES[:2])
