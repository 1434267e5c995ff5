"""Detections of a batch against torchvision's, image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast.detectors import DetectorSpec, adapt, build_detector
from gkd_fast.detectors.conventions import Conventions
from gkd_fast.detectors.suppression import postprocess_anchors, postprocess_regions, region_proposals

DETECTORS = ["faster_rcnn", "retinanet"]


def make_model(detector: str, classes: int = 5, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    spec = {"detector": detector, "backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head": 16}
    model = build_detector(DetectorSpec(**{**spec, "proposals": 60, "freeze_norm": True, **changes}), classes).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "cls_logits.weight", "bbox_pred.weight", "bbox_reg.weight")):
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("cls_logits.bias"):
            nn.init.constant_(parameter, -2.0)
    return model


def make_images(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 64 + 9 * number, 96 - 7 * number, generator=generator) for number in range(count)]


def assert_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours["labels"], theirs["labels"])
        for name in ("boxes", "scores"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


SHAPES = [(64, 96), (70, 90), (61, 93)]


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("score", [0.0, 0.6])
def test_proposals_are_torchvisions(count: int, score: float) -> None:
    rpn, generator = make_model("faster_rcnn").rpn, torch.Generator().manual_seed(2)
    for parameter in rpn.head.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    rpn.score_thresh = score
    images = ImageList(torch.zeros(count, 3, 96, 96), SHAPES[:count])
    sides = [24, 12, 6, 3, 2]
    features = {str(n): torch.randn(count, 16, side, side, generator=generator) for n, side in enumerate(sides)}
    (found, losses), (expected, _) = region_proposals(rpn, rpn.head, images, features), rpn(images, features)
    assert losses == {}
    assert min(len(own) for own in expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("counts", [[50], [50, 0, 31], [0, 0]])
def test_detections_of_regions_are_torchvisions(counts: list[int]) -> None:
    heads, generator = make_model("faster_rcnn").roi_heads, torch.Generator().manual_seed(2)
    corners = [torch.rand(count, 2, generator=generator) * 60 for count in counts]
    regions = [torch.cat([c, c + 5 + torch.rand(len(c), 2, generator=generator) * 30], 1) for c in corners]
    logits = torch.randn(sum(counts), 6, generator=generator) * 2
    offsets = torch.randn(sum(counts), 24, generator=generator) * 3
    arguments = logits, offsets, regions, SHAPES[: len(counts)]
    found, expected = postprocess_regions(heads, *arguments), heads.postprocess_detections(*arguments)
    assert sum(counts) == 0 or max(map(len, expected[0])) > 20
    for ours, theirs in zip(found, expected, strict=True):
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip_after_nms", [False, True])
@pytest.mark.parametrize("empty_boxes", ["kept", "before_nms", "after_nms"])
def test_detections_of_anchors_in_every_order_of_steps(clip_after_nms: bool, empty_boxes: Any) -> None:
    model = make_model("retinanet", conventions=Conventions(clip_after_nms=clip_after_nms, empty_boxes=empty_boxes))
    model.topk_candidates, generator = 100, torch.Generator().manual_seed(2)
    levels = [200, 60, 18, 9, 9]
    outputs = {
        "cls_logits": [torch.randn(3, n, 6, generator=generator) * 2 - 4 for n in levels],
        "bbox_regression": [torch.randn(3, n, 4, generator=generator) for n in levels],
    }
    corners = [torch.rand(n, 2, generator=generator) * 100 - 20 for n in levels]
    anchors = [[torch.cat([c, c + 5 + torch.rand(len(c), 2, generator=generator) * 30], 1) for c in corners]] * 3
    found = postprocess_anchors(model, outputs, anchors, SHAPES)
    assert_same(found, model.postprocess_detections(outputs, anchors, SHAPES))
    assert min(len(own["scores"]) for own in found) > 20


@torch.no_grad()
@pytest.mark.parametrize("detector", DETECTORS)
def test_no_detections(detector: str) -> None:
    model = make_model(detector)
    (model if detector == "retinanet" else model.roi_heads).score_thresh = 1.0
    found = adapt(model).opened()(make_images())
    assert [own["boxes"].shape for own in found] == [(0, 4)] * 3
    assert [len(own["labels"]) for own in found] == [0] * 3
    if detector == "faster_rcnn":
        model.rpn.min_size = 1e6
        assert [own["boxes"].shape for own in adapt(model).opened()(make_images())] == [(0, 4)] * 3


def test_as_many_waits_for_any_number_of_images() -> None:
    from bench.step.launches import Launches

    for detector in DETECTORS:
        found = []
        for count in (1, 3):
            opened = adapt(make_model(detector)).opened()
            with torch.no_grad(), Launches() as launches:
                opened([image[:, :64, :75] for image in make_images(count)])
            found.append([wait.split(":")[0] for wait in launches.waits])
        assert found[0] == found[1]
        assert len(found[0]) <= 4
