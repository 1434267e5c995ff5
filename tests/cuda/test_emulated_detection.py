"""The CUDA kernels on anchors, their own source run on the CPU, against the references, under several schedules."""

import sys
from pathlib import Path

import emulated
import emulated_detection as cuda
import pytest
import torch

from gkd_fast import ops

sys.path.append(str(Path(__file__).parents[1] / "ops"))
from detection_cases import ODD, generator, grid_anchors, matches, predictions, random_boxes

THRESHOLDS = {"high_threshold": 0.5, "low_threshold": 0.3}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "strided")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _reference():
    with ops.use_backend("reference"):
        yield


def laid_out(maps, layout):
    if layout == "strided":
        return [m.repeat_interleave(2, dim=-1)[..., ::2] for m in maps]
    last = layout == "channels_last"
    return [m.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format) for m in maps]


def same(name, *arguments, order=0, **options):
    """The kernel's results are the reference's, bit for bit."""
    found = getattr(cuda, name)(*arguments, order=order, **options)
    wanted = getattr(ops, name)(*arguments, **options)
    for mine, other in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (found, wanted)), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("order", emulated.ORDERS)
@pytest.mark.parametrize("low_quality", [False, True])
def test_matching(order, low_quality):
    anchors, boxes = grid_anchors(rows=13, columns=23), torch.stack([random_boxes(9), random_boxes(9, seed=2)])
    boxes[1, 3] = torch.tensor([700.0, 700.0, 710.0, 720.0])  # no anchor meets it: all are its best
    for counts in ([9, 5], [9, 0]):
        same(
            "match_anchors",
            anchors,
            boxes,
            torch.tensor(counts),
            allow_low_quality_matches=low_quality,
            order=order,
            **THRESHOLDS,
        )


def test_matching_of_own_anchors_with_more_boxes_than_threads():
    anchors, boxes = random_boxes(2, 40), random_boxes(2, 300, seed=2)
    counts = torch.tensor([300, 260])
    same("match_anchors", anchors, boxes, counts, allow_low_quality_matches=True, **THRESHOLDS)


def test_matching_of_odd_boxes():
    odd = ODD[None]
    for anchors, boxes in ((grid_anchors(), odd), (ODD, odd), (ODD, random_boxes(1, 3))):
        for low_quality in (False, True):
            counts = torch.tensor([boxes.shape[1]])
            same("match_anchors", anchors, boxes, counts, allow_low_quality_matches=low_quality, **THRESHOLDS)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_match(shape):
    images, anchors, most = shape
    counts = torch.full((images,), most)
    boxes = random_boxes(images, most)
    same("match_anchors", random_boxes(anchors), boxes, counts, allow_low_quality_matches=True, **THRESHOLDS)
    matched = torch.full((images, anchors), -1)
    assert cuda.encode_boxes(random_boxes(anchors), boxes, matched).shape == (images, anchors, 4)
    same("sample_balanced", matched, torch.arange(images), 5, positive_fraction=0.5)


def test_encoding():
    anchors, boxes, matched = random_boxes(2, 300), random_boxes(2, 6, seed=2), matches(2, 300, 6)
    for own in (anchors, anchors[0]):
        found = cuda.encode_boxes(own, boxes, matched, weights=(10.0, 10.0, 5.0, 5.0))
        wanted = ops.encode_boxes(own, boxes, matched, weights=(10.0, 10.0, 5.0, 5.0))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", emulated.ORDERS)
def test_sampling(order):
    for most, positive_fraction in ((3, 0.5), (900, 0.25), (0, 0.5)):
        matched, seeds = matches(3, 700, most), torch.tensor([0, 2**33 + 7, -5])
        same("sample_balanced", matched, seeds, 64, positive_fraction=positive_fraction, order=order)
    few = torch.full((1, 40), -1)
    few[0, 3] = 0
    same("sample_balanced", few, torch.tensor([9]), 64, positive_fraction=0.5, order=order)


@pytest.mark.parametrize("order", emulated.ORDERS)
def test_suppression(order):
    boxes = random_boxes(2, 330)
    scores = (torch.rand(2, 330, generator=generator()) * 20).round() / 20
    groups = torch.randint(-1, 3, (2, 330), generator=generator(5))
    for most in (400, 7, 0):
        same("batched_nms", boxes, scores, groups, 0.5, most=most, order=order)


def test_suppression_of_odd_boxes():
    boxes, scores = torch.cat([ODD, ODD, random_boxes(70)])[None], torch.ones(1, 84)
    for threshold in (0.7, 0.0, 1.0):
        same("batched_nms", boxes, scores, torch.zeros(1, 84, dtype=torch.int64), threshold, most=84)
    same("batched_nms", boxes[:, :0], scores[:, :0], torch.zeros(1, 0, dtype=torch.int64), 0.5, most=3)


def assert_loss(found, function, maps, dtype):
    loss, gradients = found
    leaves = [m.double().requires_grad_() for m in maps]
    wanted = function(leaves)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=2e-6, atol=2e-6)
    for mine, other in zip(gradients, torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 0.0), (0.4, 1.3)])
def test_focal_loss(layout, dtype, alpha, gamma):
    maps, anchors = predictions(5, dtype=dtype, anchors=(9, 3, 1), sizes=((6, 8), (3, 2), (1, 1)))
    maps, matched = laid_out(maps, layout), matches(2, anchors, 4)
    labels, weight = torch.tensor([[0, 4, 2, 5], [-1, 1, 3, 3]]), torch.tensor([0.3, 0.02])
    options = {"classes": 5, "alpha": alpha, "gamma": gamma}
    found = cuda.sigmoid_focal_loss(maps, matched, labels, weight, **options)
    assert_loss(found, lambda m: ops.sigmoid_focal_loss(m, matched, labels, weight, **options), maps, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_smooth_l1_loss(layout, dtype, beta):
    maps, anchors = predictions(4, dtype=dtype)
    maps, matched, weight = laid_out(maps, layout), matches(2, anchors, 4), torch.tensor([0.3, 0.02])
    targets = torch.randn(2, anchors, 4, generator=generator())
    found = cuda.smooth_l1_loss(maps, matched, targets, weight, beta=beta)
    assert_loss(found, lambda m: ops.smooth_l1_loss(m, matched, targets, weight, beta=beta), maps, dtype)


@pytest.mark.parametrize("order", emulated.ORDERS[1:])
def test_losses_are_the_same_under_every_schedule(order):
    maps, anchors = predictions(5, anchors=(9, 3, 1), sizes=((6, 8), (3, 2), (1, 1)))
    matched, labels, weight = matches(2, anchors, 4), torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0.3, 0.02])
    first, again = (
        cuda.sigmoid_focal_loss(maps, matched, labels, weight, classes=5, order=o, needed=o == 0) for o in (0, order)
    )
    assert torch.equal(first[0], again[0])
    assert again[1] == []


def run_all(sanitizer, *, anchors, images=2, dtypes=DTYPES, layouts=LAYOUTS):
    """Each operator once; a report of the sanitizer is an error."""
    boxes, counts = random_boxes(images, 5), torch.tensor([5, 2][:images])
    boxes[0, :2] = ODD[3:5]
    cuda.match_anchors(anchors, boxes, counts, allow_low_quality_matches=True, sanitizer=sanitizer, **THRESHOLDS)
    matched = matches(images, len(anchors), 5)
    cuda.encode_boxes(anchors, boxes, matched, sanitizer=sanitizer)
    cuda.sample_balanced(matched, torch.arange(images), 9, positive_fraction=0.5, sanitizer=sanitizer)
    candidates = anchors.expand(images, -1, -1)
    scores, groups = torch.rand(images, len(anchors)), torch.randint(-1, 2, (images, len(anchors)))
    cuda.batched_nms(candidates, scores, groups, 0.5, most=11, sanitizer=sanitizer)
    for dtype in dtypes:
        maps, count = predictions(4, images=images, dtype=dtype)
        matched, weight = matches(images, count, 5), torch.rand(images)
        labels = torch.randint(-1, 6, (images, 5))
        for layout in layouts:
            own = laid_out(maps, layout)
            cuda.sigmoid_focal_loss(own, matched, labels, weight, classes=4, sanitizer=sanitizer)
            cuda.smooth_l1_loss(own, matched, torch.randn(images, count, 4), weight, sanitizer=sanitizer)


def test_no_access_outside():
    run_all("address", anchors=torch.cat([grid_anchors(rows=7, columns=19), ODD]))


def test_no_race():
    anchors = grid_anchors(rows=7, columns=19)
    run_all("thread", anchors=anchors, images=1, dtypes=DTYPES[2:], layouts=LAYOUTS[:1])
