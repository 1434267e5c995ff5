import pytest
import torch
import torchvision
from ops_cases import ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, leaf, pyramid

from gkd_fast import ops

CANONICAL = {"canonical_size": 14, "canonical_level": 3}  # spreads the small test images over the levels


def by_torchvision(features, boxes, index, *, size, ratio, aligned, strides=STRIDES):
    """torchvision's roi_align on the level that the formula gives, box by box."""
    levels = torch.log2((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() / 14) + 3 + 1e-6
    levels = levels.floor().clamp(2, 1 + len(strides)).long() - 2
    rois = torch.cat([index[:, None].to(features[0]), boxes.to(features[0])], dim=1)
    pooled = [
        torchvision.ops.roi_align(features[k], roi[None], size, 1 / strides[k], ratio, aligned)
        for k, roi in zip(levels.tolist(), rois, strict=True)
    ]
    return torch.cat(pooled), levels


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_equals_torchvision(backend, ratio, aligned, size):
    features = [leaf(f) for f in pyramid(dtype=torch.float64)]
    boxes, index = boxes_of(30)
    want, levels = by_torchvision(features, boxes, index, size=size, ratio=ratio, aligned=aligned)
    assert set(levels.tolist()) == {0, 1, 2}
    got = ops.multiscale_roi_align(
        features, boxes, index, STRIDES, output_size=size, sampling_ratio=ratio, aligned=aligned, **CANONICAL
    )
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, features, weight), torch.autograd.grad(want, features, weight), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ratio", [0, 2])
def test_module_replaces_torchvisions(backend, ratio):
    maps = dict(zip(("0", "1", "2", "pool"), pyramid(sizes=((64, 80), (32, 40), (16, 20), (8, 10))), strict=True))
    boxes, index = boxes_of(40, extent=(320.0, 256.0))
    arguments = (["0", "1", "2"], 7, ratio)
    inputs = (maps, [boxes[index == 0], boxes[index == 1]], [(256, 320), (250, 310)])
    want = torchvision.ops.MultiScaleRoIAlign(*arguments)(*inputs)
    torch.testing.assert_close(ops.MultiScaleRoIAlign(*arguments)(*inputs), want)


def test_odd_boxes(backend):
    features = [leaf(f) for f in pyramid()]
    out = ops.multiscale_roi_align(features, ODD_BOXES, ODD_IMAGES, STRIDES, output_size=2, **CANONICAL)
    assert out.isfinite().all()
    assert (out[-1] == 0).all()  # NaN
    assert (out[5] == 0).all()  # negative area has no level
    assert (out[2] == 0).all()  # outside
    out.sum().backward()
    assert all(f.grad.isfinite().all() for f in features)


def test_no_boxes(backend):
    out = ops.multiscale_roi_align(
        pyramid(),
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        STRIDES,
        output_size=7,
        sampling_ratio=0,
    )
    assert out.shape == (0, 3, 7, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_rounded_truth(backend, dtype):
    features = pyramid(dtype=dtype)
    boxes, index = boxes_of(20)
    got = ops.multiscale_roi_align(features, boxes, index, STRIDES, output_size=7, **CANONICAL)
    exact = [f.double() for f in features]
    truth = ops.multiscale_roi_align(exact, boxes, index, STRIDES, output_size=7, **CANONICAL)
    assert got.dtype == dtype
    torch.testing.assert_close(got, truth.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_bad_arguments():
    boxes, index = boxes_of(2)
    with pytest.raises(ValueError, match="output_size: expected a positive number or a pair"):
        ops.multiscale_roi_align(pyramid(), boxes, index, STRIDES, output_size=0)
    with pytest.raises(ValueError, match="sampling_ratio: expected 0"):
        ops.multiscale_roi_align(pyramid(), boxes, index, STRIDES, output_size=7, sampling_ratio=-1)
