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
def test_equals_loops(backend, negative, channels_last, boxes):
    features = pyramid(dtype=torch.float64, channels_last=channels_last)
    b, index = boxes_of(20) if boxes == "random" else (ODD_BOXES, ODD_IMAGES)
    got = ops.box_mean_pool(features, b, index, STRIDES, negative=negative)
    torch.testing.assert_close(got, by_loops(features, b, index, STRIDES, negative), equal_nan=True)


def test_gradcheck(backend):
    features = [leaf(f) for f in pyramid(dtype=torch.float64, channels=2, sizes=((5, 6), (3, 2), (1, 1)))]
    boxes, index = boxes_of(6, extent=(24.0, 20.0))
    assert torch.autograd.gradcheck(lambda *f: ops.box_mean_pool(f, boxes, index, STRIDES), features)


def test_nan_box_passes_no_gradient(backend):
    features = [leaf(f) for f in pyramid()]
    ops.box_mean_pool(features, ODD_BOXES[-1:], ODD_IMAGES[-1:], STRIDES).sum().backward()
    assert all((f.grad == 0).all() for f in features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_the_rounded_truth(backend, dtype):
    features = pyramid(dtype=dtype)
    boxes, index = boxes_of(20)
    got = ops.box_mean_pool(features, boxes, index, STRIDES)
    assert got.dtype == dtype
    truth = ops.box_mean_pool([f.double() for f in features], boxes, index, STRIDES)
    torch.testing.assert_close(got, truth.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("images", [0, 2])
def test_no_boxes(backend, images):
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


def large_boxes(count, seed=0):
    """Boxes that overlap so much that sums over columns replace direct sums."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60 - 20
    boxes = torch.cat([corner, corner + 40 + 80 * torch.rand(count, 2, generator=generator)], dim=1)
    return boxes, torch.randint(2, (count,), generator=generator)


def values_and_gradients(features, boxes, index, cotangent):
    leaves = [leaf(f) for f in features]
    means = ops.box_mean_pool(leaves, boxes, index, STRIDES)
    return means, torch.autograd.grad(means, leaves, cotangent.to(means.dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("boxes", ["few", "large", "odd"])
def test_kernel_agrees_with_the_reference(dtype, layout, boxes):
    features = pyramid(dtype=dtype, channels=19, channels_last=layout == "channels_last")
    if layout == "sliced":
        features = [torch.stack([f, f], dim=-1)[..., 0] for f in features]
    b, index = {"few": boxes_of(5), "large": large_boxes(63), "odd": (ODD_BOXES[:-1], ODD_IMAGES[:-1])}[boxes]
    cotangent = torch.randn(len(features), len(b), 19, generator=torch.Generator().manual_seed(1))
    with ops.use_backend("cpu"):
        means, gradients = values_and_gradients(features, b, index, cotangent)
    with ops.use_backend("reference"):
        truth, true_gradients = values_and_gradients([f.double() for f in features], b, index, cotangent)
    eps = max(torch.finfo(dtype).eps, 1e-13)  # the reference's own prefix sums cancel in float64
    tolerance = {"rtol": 2 * eps, "atol": 4 * eps}
    assert means.dtype == dtype
    torch.testing.assert_close(means.double(), truth, **tolerance)
    for feature, got, want in zip(features, gradients, true_gradients, strict=True):
        assert got.dtype == dtype
        assert layout == "sliced" or got.stride() == feature.stride()
        torch.testing.assert_close(got.double(), want, **tolerance)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_the_reference_s(dtype, channels_last):
    features = pyramid(channels=24, sizes=((60, 70), (30, 35), (15, 18)), dtype=dtype, channels_last=channels_last)
    boxes, index = boxes_of(150, extent=(280.0, 240.0))
    cotangent = torch.randn(3, 150, 24, generator=torch.Generator().manual_seed(1))

    def run(backend, dtype):
        with ops.use_backend(backend):
            means, gradients = values_and_gradients([f.to(dtype) for f in features], boxes, index, cotangent)
        return [means, *gradients]

    truth = run("reference", torch.float64)
    kernel, reference = (
        [(got.double() - want).square().mean().sqrt().item() for got, want in zip(run(name, dtype), truth, strict=True)]
        for name in ("cpu", "reference")
    )
    for error, budget in zip(kernel, reference, strict=True):
        assert error <= 1.001 * budget


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("count", [7, 200])
def test_same_bits_for_any_number_of_threads(channels_last, count):
    features = pyramid(channels=33, channels_last=channels_last)
    boxes, index = large_boxes(count)
    cotangent = torch.randn(len(features), count, 33, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    results = []
    try:
        with ops.use_backend("cpu"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(values_and_gradients(features, boxes, index, cotangent))
    finally:
        torch.set_num_threads(before)
    for means, gradients in results[1:]:
        assert torch.equal(means, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


def test_images_outside_the_batch_are_refused():
    boxes, index = boxes_of(4)
    with ops.use_backend("cpu"), pytest.raises(RuntimeError, match=r"image_index: expected values in \[0,2\), got 2"):
        ops.box_mean_pool(pyramid(), boxes, index + 2 - index, STRIDES)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    features = pyramid(channels_last=channels_last)
    boxes, index = boxes_of(6)
    strides = [float(s) for s in STRIDES]
    raw = torch.ops.gkd_fast
    torch.library.opcheck(raw.box_mean_pool.default, (features, boxes, index, strides, False))
    gradient = torch.randn(len(features), 6, features[0].shape[1])
    torch.library.opcheck(raw.box_mean_pool_backward.default, (gradient, features, boxes, index, strides, True))


def test_pyramids_together(backend):
    """The same as one by one, gradients only where they are needed, and exact means."""
    features, others = pyramid(), pyramid(seed=3)[:2]
    boxes, index = boxes_of(9)
    leaves = [leaf(f) for f in features]
    strides = (*STRIDES, *STRIDES[:2])
    both = ops.box_mean_pools((leaves, others), boxes, index, strides)
    alone = [ops.box_mean_pool(maps, boxes, index, STRIDES[: len(maps)]) for maps in (leaves, others)]
    for got, want in zip(both, alone, strict=True):
        torch.testing.assert_close(got, want)
    weights = torch.rand(both[0].shape, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((means * weights).sum(), leaves) for means in (both[0], alone[0])]
    torch.testing.assert_close(*gradients)
    assert backend == "reference" or not both[1].requires_grad
    halves = [f.bfloat16() for f in features]
    exact = ops.box_mean_pool(halves, boxes, index, STRIDES, exact=True)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact, ops.box_mean_pool([f.float() for f in halves], boxes, index, STRIDES))
