"""RetinaNet's last steps in the order of other libraries."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection import RetinaNet

from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.conventions import CONVENTIONS, Conventions
from gkd_fast.detectors.fixed_size import _one_stage
from gkd_fast.detectors.ordered import OrderedRetinaNet

SIZE = (100, 100)
# The first two overlap by less than half as they are, by more once they are clipped; the third lies outside.
BOXES = torch.tensor([[-60.0, 0, 40, 40], [0.0, 0, 40, 40], [120.0, 0, 160, 40], [50.0, 50, 90, 90]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])


class Decoded:
    """In the place of a box coder: offsets are the boxes themselves."""

    @staticmethod
    def decode_single(offsets: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        return offsets


def detected(*, most: int = 100, **conventions: object) -> dict[str, torch.Tensor]:
    spec = DetectorSpec(detector="retinanet", backbone="resnet18", conventions=Conventions(**conventions))
    model = build_detector(spec, 1).eval()
    model.box_coder, model.detections_per_img = Decoded, most
    logits = torch.stack([torch.full_like(SCORES, -20), SCORES.logit()], 1)
    outputs = {"cls_logits": [logits[None]], "bbox_regression": [BOXES[None]]}
    (found,) = model.postprocess_detections(outputs, [[BOXES]], [SIZE])
    return found


def test_without_conventions_it_is_torchvisions() -> None:
    model = build_detector(DetectorSpec(detector="retinanet", backbone="resnet18"), 1)
    assert type(model) is RetinaNet
    found = detected()
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found["boxes"][1].tolist() == [100, 0, 100, 40]


def test_clipped_after_suppression_both_stay() -> None:
    found = detected(clip_after_nms=True)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert found["boxes"][0].tolist() == [0, 0, 40, 40]


@pytest.mark.parametrize(("when", "left"), [("before_nms", [0.9, 0.6]), ("after_nms", [0.9])])
def test_boxes_without_an_area_take_a_place_or_none(when: str, left: list[float]) -> None:
    assert detected(empty_boxes=when, most=2)["scores"].tolist() == pytest.approx(left)


@pytest.mark.parametrize("name", ["torchvision", "mmdet", "detectron2"])
def test_the_traceable_form_does_the_same(name: str) -> None:
    torch.manual_seed(0)
    spec = DetectorSpec(detector="retinanet", backbone="resnet18", conventions=CONVENTIONS[name])
    model = build_detector(spec, 3).eval()
    assert isinstance(model, OrderedRetinaNet) is (name != "torchvision")
    for part, weight in model.head.named_parameters():
        if ".conv." in part and weight.dim() == 4:  # the network's maps are large, and scores would all be 0 or 1
            torch.nn.init.normal_(weight, std=0.01)
    torch.nn.init.normal_(model.head.classification_head.cls_logits.bias, -2.0, 1.0)
    torch.nn.init.normal_(model.head.regression_head.bbox_reg.bias, 0.0, 1.0)
    image = torch.rand(3, 96, 128)
    images, _ = model.transform([image])
    with torch.no_grad():
        (found,) = model([image])
        boxes, scores, labels = _one_stage(model, images, model.backbone(images.tensors))
    taken = scores > 0
    assert len(found["scores"]) > 20
    torch.testing.assert_close(scores[taken], found["scores"])
    torch.testing.assert_close(boxes[taken], found["boxes"], rtol=1e-3, atol=1e-2)
    assert torch.equal(labels[taken], found["labels"])
