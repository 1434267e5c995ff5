"""Losses on the heads' maps against torchvision's and torch's on joined rows, and against the reference in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detection_cases import NAN, anchor_rows, generator, matches, predictions
from ops_cases import LAYOUTS, laid_out
from torchvision.ops import sigmoid_focal_loss

from gkd_fast import ops

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
CLASSES = 5
LABELS = torch.tensor([[0, 4, 2, 5], [-1, 1, 3, 3]])
WEIGHT = torch.tensor([0.3, 0.02])


def focal(maps, matched, **options):
    return ops.sigmoid_focal_loss(maps, matched, LABELS, WEIGHT, classes=CLASSES, **options)


def truth(function, maps):
    """Loss and gradients of the reference in float64 from the same numbers."""
    exact = [m.detach().double().requires_grad_() for m in maps]
    with ops.use_backend("reference"):
        loss = function(exact)
    return loss.detach(), torch.autograd.grad(3 * loss, exact)


def check(function, maps):
    leaves = [m.detach().requires_grad_() for m in maps]
    loss = function(leaves)
    gradients = torch.autograd.grad(3 * loss, leaves)
    want, want_gradients = truth(function, maps)
    dtype = maps[0].dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rounding = max(TOLERANCE[loss.dtype], 1e-12)
    torch.testing.assert_close(loss.double(), want, rtol=rounding, atol=rounding)
    for mine, other in zip(gradients, want_gradients, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 0.0), (0.4, 1.3)])
def test_focal_loss(layout, dtype, alpha, gamma, backend):
    maps, anchors = predictions(CLASSES, dtype=dtype, anchors=(9, 3, 1), sizes=((16, 13), (3, 2), (1, 1)))
    matched = matches(2, anchors, 4)
    check(lambda m: focal(m, matched, alpha=alpha, gamma=gamma), [laid_out(m, layout) for m in maps])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_smooth_l1_loss(layout, dtype, beta, backend):
    maps, anchors = predictions(4, dtype=dtype)
    matched, targets = matches(2, anchors, 4), torch.randn(2, anchors, 4, generator=generator())
    check(lambda m: ops.smooth_l1_loss(m, matched, targets, WEIGHT, beta=beta), [laid_out(m, layout) for m in maps])


def test_equals_torchvisions_focal_loss(backend):
    maps, anchors = predictions(CLASSES)
    maps, matched = [m.requires_grad_() for m in maps], matches(2, anchors, 4)
    rows = torch.cat(anchor_rows(maps, CLASSES), 1)
    label = LABELS.gather(1, matched.clamp(min=0)).where(matched >= 0, -1)
    target = (label[:, :, None] == torch.arange(CLASSES)).float()
    want = sigmoid_focal_loss(rows, target).masked_fill((matched < -1)[:, :, None], 0)
    want = ((want.sum((1, 2))) * WEIGHT).sum()
    found = focal(maps, matched)
    torch.testing.assert_close(found, want)
    for a, b in zip(torch.autograd.grad(found, maps), torch.autograd.grad(want, maps), strict=True):
        torch.testing.assert_close(a, b)


def test_without_focus_it_is_binary_cross_entropy(backend):
    maps, anchors = predictions(1)
    matched = matches(2, anchors, 2)
    rows = torch.cat(anchor_rows(maps, 1), 1)[:, :, 0]
    want = F.binary_cross_entropy_with_logits(rows, (matched >= 0).float(), reduction="none")
    want = (want.masked_fill(matched < -1, 0).sum(1) * WEIGHT).sum()
    labels = torch.zeros(2, 2, dtype=torch.int64)
    found = ops.sigmoid_focal_loss(maps, matched, labels, WEIGHT, classes=1, alpha=-1, gamma=0)
    torch.testing.assert_close(found, want)


def test_extreme_logits(backend):
    values = torch.tensor([0.0, -0.0, 30.0, -30.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e-20, 1e30, -1e30])
    labels, weight = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1)
    for gamma in (0.0, 2.0, 1.3):
        for match in (0, -1):
            matched = torch.full((1, len(values)), match)
            options = {"classes": 1, "gamma": gamma}
            check(
                partial(ops.sigmoid_focal_loss, matched=matched, labels=labels, weight=weight, **options),
                [values.view(1, 1, 1, -1)],
            )


def test_what_is_left_out_may_be_anything(backend):
    maps, anchors = predictions(CLASSES)
    matched = matches(2, anchors, 4)
    ignored = matched < -1
    want = focal(maps, matched)
    first = 0
    for level, count in zip(maps, (2, 3, 1), strict=True):
        cells = level.shape[2] * level.shape[3]
        own = ignored[:, first : first + cells * count].view(2, *level.shape[2:], count).permute(0, 3, 1, 2)
        level[own.repeat_interleave(CLASSES, 1)] = NAN
        first += cells * count
    leaves = [m.requires_grad_() for m in maps]
    found = focal(leaves, matched)
    assert torch.equal(found, want)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, leaves))
    maps[0].data[0, 0, 0, 0] = NAN
    matched[0, 0] = -1
    assert focal(maps, matched).isnan()


@pytest.mark.parametrize("images", [0, 1])
def test_empty(images, backend):
    maps, anchors = predictions(CLASSES, images=images)
    maps = [m.requires_grad_() for m in maps]
    matched, weight = torch.full((images, anchors), -2), torch.ones(images)
    labels = torch.zeros(images, 0, dtype=torch.int64)
    loss = ops.sigmoid_focal_loss(maps, matched, labels, weight, classes=CLASSES)
    assert loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, maps))
    boxes, _ = predictions(4, images=images)
    assert ops.smooth_l1_loss(boxes, matched, torch.zeros(images, anchors, 4), weight) == 0


def test_gradcheck():
    maps, anchors = predictions(2, dtype=torch.float64, anchors=(2, 1), sizes=((2, 3), (1, 1)))
    maps, matched = [m.requires_grad_() for m in maps], matches(2, anchors, 4)
    with ops.use_backend("cpu"):
        function = lambda *m: ops.sigmoid_focal_loss(list(m), matched, LABELS, WEIGHT, classes=2, gamma=1.5)  # noqa: E731
        assert torch.autograd.gradcheck(function, maps)


def test_threads_do_not_change_losses():
    maps, anchors = predictions(CLASSES, sizes=((60, 70), (30, 35), (7, 9)))
    matched, found, before = matches(2, anchors, 4), [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(focal(maps, matched))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_no_gradient_is_made_where_none_is_wanted():
    maps, anchors = predictions(CLASSES)
    matched = matches(2, anchors, 4)
    assert not focal(maps, matched).requires_grad
    with torch.no_grad():
        assert not focal([m.requires_grad_() for m in maps], matched).requires_grad


def test_wrong_arguments():
    maps, anchors = predictions(CLASSES)
    matched = matches(2, anchors, 4)
    for call, message in (
        (lambda: focal(maps, matched[:, 1:]), f"matched: expected A = {anchors}, got {anchors - 1}"),
        (lambda: focal(maps, matched, gamma=-1), "gamma: expected 0 or more"),
        (lambda: ops.sigmoid_focal_loss(maps, matched, LABELS, WEIGHT, classes=4), "expected a multiple of 4"),
        (lambda: ops.sigmoid_focal_loss(maps, matched, LABELS[:1], WEIGHT, classes=5), "labels: expected N = 2, got 1"),
        (lambda: ops.smooth_l1_loss(maps, matched, torch.zeros(2, 3, 4), WEIGHT, beta=-1), "beta: expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="logits: expected a list"):
        focal(maps[0], matched)
