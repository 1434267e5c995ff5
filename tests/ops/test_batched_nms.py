"""Non-maximum suppression of a batch against torchvision's of every image and group."""

import pytest
import torch
from detection_cases import ODD, generator, random_boxes
from torchvision.ops import nms

from gkd_fast import ops


def torchvision_kept(boxes, scores, groups, threshold):
    """torchvision's rule for one image: nms in every group, then by score, ties in order."""
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for group in groups[groups >= 0].unique():
        own = torch.where(groups == group)[0]
        kept[own[nms(boxes[own], scores[own], threshold)]] = True
    kept = torch.where(kept)[0]
    return kept[scores[kept].sort(descending=True, stable=True).indices]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_torchvision_ties_included(threshold, backend):
    boxes = random_boxes(3, 150)
    boxes[1, 20:30] = boxes[1, 20]
    scores = (torch.rand(3, 150, generator=generator()) * 20).round() / 20
    groups = torch.randint(-1, 4, (3, 150), generator=generator(1))
    for most in (150, 9, 0):
        kept, counts = ops.batched_nms(boxes, scores, groups, threshold, most=most)
        for image in range(3):
            want = torchvision_kept(boxes[image], scores[image], groups[image], threshold)[:most]
            assert counts[image] == len(want)
            assert torch.equal(kept[image, : len(want)], want)
            assert (kept[image, len(want) :] == -1).all()


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_a_threshold_that_is_met_exactly_is_not_exceeded(threshold, backend):
    # IoU 3/10 and 7/10 of whole-numbered boxes, in float32 above and below the threshold.
    other = [0.0, 0.0, 10.0 * threshold, 10.0]
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], other]])
    kept, _ = ops.batched_nms(boxes, torch.tensor([[0.9, 0.8]]), torch.zeros(1, 2).long(), threshold, most=2)
    want = nms(boxes[0], torch.tensor([0.9, 0.8]), threshold)
    assert kept[0][kept[0] >= 0].tolist() == want.tolist()


def test_odd_boxes_and_scores():
    boxes = torch.cat([ODD, ODD, random_boxes(20)])[None]
    scores = torch.ones(1, 34)
    scores[0, 3:6] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    groups = torch.zeros(1, 34, dtype=torch.int64)
    found = []
    for backend in ("reference", "cpu"):
        with ops.use_backend(backend):
            found.append(ops.batched_nms(boxes, scores, groups, 0.5, most=34))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(found[0][0][0, : found[0][1][0]], torchvision_kept(boxes[0], scores[0], groups[0], 0.5))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_empty(shape, backend):
    kept, counts = ops.batched_nms(random_boxes(*shape), torch.rand(shape), torch.zeros(shape).long(), 0.5, most=3)
    assert kept.shape == (shape[0], 3)
    assert (kept == -1).all()
    assert (counts == 0).all()


def test_padding_may_hold_anything(backend):
    boxes, scores, groups = random_boxes(1, 40), torch.rand(1, 40, generator=generator()), torch.zeros(1, 40).long()
    groups[0, 10:20] = -1
    want = ops.batched_nms(boxes, scores, groups, 0.5, most=40)
    boxes[0, 10:20], scores[0, 10:20] = float("nan"), float("nan")
    assert all(
        torch.equal(a, b) for a, b in zip(ops.batched_nms(boxes, scores, groups, 0.5, most=40), want, strict=True)
    )


def test_wrong_arguments():
    boxes, scores, groups = random_boxes(2, 3), torch.rand(2, 3), torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match="most: expected 0 or more, got -1"):
        ops.batched_nms(boxes, scores, groups, 0.5, most=-1)
    with pytest.raises(ValueError, match="scores: expected K = 3, got 2"):
        ops.batched_nms(boxes, scores[:, :2], groups, 0.5, most=1)
    with pytest.raises(TypeError, match=r"groups: expected torch.int64, got torch.float32"):
        ops.batched_nms(boxes, scores, scores, 0.5, most=1)
