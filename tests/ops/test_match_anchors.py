"""Matching, encoding and sampling against torchvision's own, and against each other on all backends."""

import pytest
import torch
from detection_cases import ODD, generator, grid_anchors, matches, random_boxes
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from gkd_fast import ops

THRESHOLDS = {"high_threshold": 0.7, "low_threshold": 0.3}


def torchvision_matches(anchors, boxes, *, low_quality, high=0.7, low=0.3):
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1)
    return Matcher(high, low, allow_low_quality_matches=low_quality)(box_iou(boxes, anchors))


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("sides", [(12.0, 24.0), (16.0,), (13.3, 21.7, 30.1)])
def test_matches_are_torchvisions_ties_included(low_quality, sides, backend):
    anchors = grid_anchors(rows=23, columns=31, sides=sides)
    boxes = torch.stack([random_boxes(12, extent=200.0, seed=seed) for seed in range(4)])
    boxes[0, 5] = boxes[0, 2]  # two equal boxes
    boxes[1, 4] = torch.tensor([900.0, 900.0, 920.0, 940.0])  # no anchor meets it
    counts = torch.tensor([12, 12, 1, 0])
    found = ops.match_anchors(anchors, boxes, counts, allow_low_quality_matches=low_quality, **THRESHOLDS)
    for own, of_image, count in zip(found, boxes, counts, strict=True):
        assert torch.equal(own, torchvision_matches(anchors, of_image[:count], low_quality=low_quality))
    assert len(found.unique()) > (3 if low_quality else 1)


def test_anchors_of_every_image(backend):
    anchors, boxes, counts = random_boxes(3, 50, whole=False), random_boxes(3, 7, seed=5), torch.tensor([7, 3, 7])
    found = ops.match_anchors(anchors, boxes, counts, high_threshold=0.5, low_threshold=0.5)
    for own, candidates, of_image, count in zip(found, anchors, boxes, counts, strict=True):
        assert torch.equal(own, torchvision_matches(candidates, of_image[:count], low_quality=False, high=0.5, low=0.5))


def test_what_fills_up_boxes_does_not_count(backend):
    anchors, boxes = grid_anchors(), random_boxes(2, 6)
    counts = torch.tensor([4, 2])
    want = ops.match_anchors(anchors, boxes, counts, allow_low_quality_matches=True, **THRESHOLDS)
    for filling in (float("nan"), float("inf"), 0.0):
        for image, count in enumerate(counts):
            boxes[image, count:] = filling
        found = ops.match_anchors(anchors, boxes, counts, allow_low_quality_matches=True, **THRESHOLDS)
        assert torch.equal(found, want)
    assert torch.equal(
        ops.match_anchors(anchors, boxes, torch.tensor([9, -3]), **THRESHOLDS)[1], torch.full((len(anchors),), -1)
    )


@pytest.mark.parametrize("low_quality", [False, True])
def test_odd_boxes_are_matched_alike(low_quality):
    cases = ((grid_anchors(), ODD), (ODD, ODD), (ODD, random_boxes(3)), (torch.cat([ODD, grid_anchors()]), ODD[:1]))
    for anchors, boxes in cases:
        found = []
        for backend in ("reference", "cpu"):
            with ops.use_backend(backend):
                counts = torch.tensor([len(boxes)])
                options = {"allow_low_quality_matches": low_quality, **THRESHOLDS}
                found.append(ops.match_anchors(anchors, boxes[None], counts, **options))
        assert torch.equal(*found)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_empty(shape, backend):
    images, anchors, most = shape
    counts = torch.full((images,), most)
    own, boxes = random_boxes(anchors), random_boxes(images, most)
    matched = ops.match_anchors(own, boxes, counts, allow_low_quality_matches=True, **THRESHOLDS)
    assert matched.shape == (images, anchors)
    assert ops.encode_boxes(own, boxes, matched.clamp(max=-1)).shape == (images, anchors, 4)
    index, drawn = ops.sample_balanced(matched.clamp(max=-1), torch.arange(images), 5, positive_fraction=0.5)
    assert index.shape == (images, 5)
    assert drawn.shape == (images, anchors)
    if anchors == 0:
        assert (index == -1).all()


def test_threads_do_not_change_matches():
    anchors, boxes = grid_anchors(rows=80, columns=90), random_boxes(2, 30, extent=600.0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ops.match_anchors(anchors, boxes, torch.tensor([30, 20]), **THRESHOLDS))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_offsets_are_torchvisions(weights, backend):
    anchors, boxes, matched = random_boxes(60, whole=False), random_boxes(2, 5, seed=4), matches(2, 60, 5)
    found = ops.encode_boxes(anchors, boxes, matched, weights=weights)
    for own, of_image, match in zip(found, boxes, matched, strict=True):
        want = BoxCoder(weights).encode_single(of_image[match.clamp(min=0)], anchors)
        torch.testing.assert_close(own, want * (match >= 0)[:, None], rtol=1e-6, atol=1e-6)
    own = ops.encode_boxes(torch.stack([anchors, anchors]), boxes, matched, weights=weights)
    assert torch.equal(own, found)


def test_samples_are_as_many_as_torchvisions(backend):
    for most, fraction, samples in ((3, 0.5, 64), (900, 0.25, 64), (0, 0.5, 64), (3, 0.5, 5000), (3, 0.0, 7)):
        matched, seeds = matches(3, 700, most), torch.tensor([0, 2**33 + 7, -5])
        index, drawn = ops.sample_balanced(matched, seeds, samples, positive_fraction=fraction)
        for places, kept, own in zip(index, drawn, matched, strict=True):
            positives = min(int((own >= 0).sum()), int(samples * fraction))
            negatives = min(int((own == -1).sum()), samples - positives)
            taken = places[: positives + negatives]
            assert (places[positives + negatives :] == -1).all()
            assert (own[taken[:positives]] >= 0).all()
            assert (own[taken[positives:]] == -1).all()
            assert all(torch.equal(part, part.unique()) for part in taken.split([positives, negatives]))
            assert torch.equal(kept, torch.full_like(own, -2).scatter(0, taken, own[taken]))


def test_samples_depend_on_the_seed_alone_and_on_no_backend():
    matched = matches(4, 3000, 9)
    seeds = torch.tensor([1, 2, 1, 2**40 + 1])
    with ops.use_backend("reference"):
        want = ops.sample_balanced(matched, seeds, 256, positive_fraction=0.5)
    found = ops.sample_balanced(matched, seeds, 256, positive_fraction=0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    alone = ops.sample_balanced(matched[2:3], seeds[2:3], 256, positive_fraction=0.5)
    assert torch.equal(alone[0][0], found[0][2])
    same = ops.sample_balanced(matched[:1].expand(4, -1), seeds, 256, positive_fraction=0.5)[0]
    assert torch.equal(same[0], same[2])
    assert not torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[3])


def test_every_place_is_drawn_as_often_as_others():
    matched = torch.full((4000, 20), -1)
    matched[:, :8] = 0
    seeds = torch.randint(2**62, (4000,), generator=generator())
    _, drawn = ops.sample_balanced(matched, seeds, 8, positive_fraction=0.25)
    share = (drawn > -2).double().mean(0)
    # 2 of 8 and 6 of 12, within five standard deviations.
    assert (share[:8] - 2 / 8).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert (share[8:] - 6 / 12).abs().max() < 5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, b, c: ops.match_anchors(a, b, c, high_threshold=0.3, low_threshold=0.5),
            "low_threshold: expected at",
        ),
        (lambda a, b, c: ops.match_anchors(a, b[0], c, **THRESHOLDS), r"boxes: expected shape \[N,G,4\]"),
        (lambda a, b, c: ops.match_anchors(a, b, c[:1], **THRESHOLDS), "counts: expected N = 2, got 1"),
        (lambda a, b, c: ops.match_anchors(a[None], b, c, **THRESHOLDS), "anchors: expected N = 2, got 1"),
        (lambda a, b, c: ops.encode_boxes(a, b, torch.zeros(2, 3, dtype=torch.int64)), "matched: expected A = 198"),
        (lambda a, b, c: ops.encode_boxes(a, b, torch.zeros(2, 198).long(), weights=(1.0,)), "weights: expected 4"),
        (lambda a, b, c: ops.sample_balanced(c[:, None], c, -1, positive_fraction=0.5), "samples: expected 0 or more"),
        (lambda a, b, c: ops.sample_balanced(c[:, None], c, 1, positive_fraction=2), "positive_fraction: expected a"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(grid_anchors(), random_boxes(2, 3), torch.tensor([3, 3]))


def test_wrong_dtypes():
    anchors, boxes, counts = grid_anchors(), random_boxes(2, 3), torch.tensor([3, 3])
    with pytest.raises(TypeError, match=r"boxes: expected torch.float32, got torch.float64"):
        ops.match_anchors(anchors, boxes.double(), counts, **THRESHOLDS)
    with pytest.raises(TypeError, match=r"matched: expected torch.int64, got torch.int32"):
        ops.sample_balanced(torch.zeros(2, 3).int(), counts, 1, positive_fraction=0.5)
