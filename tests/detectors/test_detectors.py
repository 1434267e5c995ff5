from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from gkd_fast.detectors import DetectorSpec, adapt, build_detector
from gkd_fast.detectors.backbones import backbone_with_fpn
from gkd_fast.detectors.build import select_outputs
from gkd_fast.errors import InputError
from gkd_fast.pyramids import infer_strides

SMALL = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head": 32, "anchor_size": 16}


def small(detector: str, **changes) -> DetectorSpec:
    return DetectorSpec(detector=detector, proposals=50, rois=16, **{**SMALL, **changes})


def make_batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in ((90, 128), (96, 100))
    ]
    targets = [
        {"boxes": torch.tensor([[10.0, 10, 60, 50], [70, 20, 100, 80]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, targets


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_tiny", "swin_t", "efficientnet_b0", "regnet_y_400mf", "vgg11_bn"]
)
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_any_backbone_gives_a_pyramid(name: str, detector: str) -> None:
    backbone = backbone_with_fpn(name, detector=detector, channels=16).eval()
    with torch.no_grad():
        levels = list(backbone(torch.zeros(1, 3, 128, 160)).values())
    strides = (4, 8, 16, 32, 64) if detector == "faster_rcnn" else (8, 16, 32, 64, 128)
    assert [level.shape[1] for level in levels] == [16] * 5
    assert [level.shape[-1] for level in levels] == [-(-160 // stride) for stride in strides]
    assert infer_strides((128, 160), levels) == strides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "backbone: expected a torchvision model .* got 'resnet19'"),
        ({"name": "alexnet"}, r"backbone alexnet: expected stages of strides .* none of \[16, 32\]"),
        ({"name": "vit_b_16"}, "backbone vit_b_16: expected stages of strides"),
        ({"name": "resnet18", "width": 0.5}, "backbone resnet18: expected width 1.0"),
        (
            {"name": "resnet18", "weights": "COCO"},
            "weights of resnet18: expected one of IMAGENET1K_V1.* got 'COCO'",
        ),
    ],
)
def test_unusable_backbones_say_what_was_expected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        backbone_with_fpn(detector="faster_rcnn", channels=16, **arguments)


def test_resnet50_is_torchvisions_own_detector() -> None:
    ours = build_detector(DetectorSpec(detector="faster_rcnn", backbone="resnet50"), 20)
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours = build_detector(DetectorSpec(detector="retinanet", backbone="resnet50"), 20)
    theirs = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_weights_load_strictly_into_a_model_of_plain_torchvision_parts() -> None:
    spec = small("faster_rcnn", backbone="resnet18", width=1.0)
    backbone = BackboneWithFPN(
        resnet18(), {f"layer{i + 1}": str(i) for i in range(4)}, [64, 128, 256, 512], out_channels=16
    )
    plain = FasterRCNN(backbone, box_head=TwoMLPHead(16 * 49, 32), box_predictor=FastRCNNPredictor(32, 4))
    plain.load_state_dict(build_detector(spec, 3).state_dict(), strict=True)


@pytest.mark.parametrize("freeze_norm", [False, True])
def test_frozen_norm_keeps_statistics(freeze_norm: bool) -> None:
    model = build_detector(small("faster_rcnn", freeze_norm=freeze_norm), 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model.backbone(torch.randn(2, 3, 64, 64))
    moved = [not torch.equal(value, model.state_dict()[name]) for name, value in before.items()]
    assert moved
    assert any(moved) is not freeze_norm


def test_two_stage_instances_are_positive_proposals() -> None:
    torch.manual_seed(0)
    adapter = adapt(build_detector(small("faster_rcnn"), 3))
    images, targets = make_batch()
    own = adapter.train_pass(adapter.batch(images), targets)
    instances = own.instances
    taken = instances.labels >= 0
    assert int(taken.sum()) >= 2  # the ground truth itself is among the proposals
    assert set(instances.image_index[taken].tolist()) == {0}
    assert (instances.boxes[~taken] == 0).all()
    for box, label in zip(instances.boxes[taken], instances.labels[taken], strict=True):
        iou = torchvision.ops.box_iou(box[None], targets[0]["boxes"])[0]
        assert float(iou.max()) >= 0.5
        assert int(targets[0]["labels"][iou.argmax()]) - 1 == int(label)


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_soft_pairs_meet_on_the_same_places(detector: str) -> None:
    torch.manual_seed(0)
    student = adapt(build_detector(small(detector), 3))
    teacher = adapt(build_detector(small(detector, channels=24), 3).eval())
    images, targets = make_batch()
    batch = student.batch(images)
    own = student.train_pass(batch, targets)
    soft = student.soft_pairs(own, teacher, teacher.pyramid(batch))
    if detector == "retinanet":
        assert torch.equal(soft.instance >= 0, (own.soft["matched"] >= 0).flatten())
    rows = len(soft.instance)
    real = soft.instance >= 0
    assert int(real.sum()) >= 2
    assert soft.student.shape == soft.teacher.shape == (rows, 4 if detector == "faster_rcnn" else 3)
    assert soft.student.requires_grad
    assert not soft.teacher.requires_grad
    assert int(soft.instance.max()) < len(own.instances.labels)
    if detector == "faster_rcnn":
        assert soft.student_embedding.shape == (rows, 16)
        assert soft.teacher_embedding.shape == (rows, 24)
    else:
        anchors = student.model.anchor_generator(batch, own.features)[0].repeat(len(images), 1)[real]
        boxes = own.instances.boxes[soft.instance[real]]
        assert (torchvision.ops.box_iou(anchors, boxes).diagonal() > 0).all()
        sizes = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
        assert torch.equal((sizes.sqrt() / 16).log2().add(0.05).floor().long(), soft.level[real])


def test_a_teacher_with_other_anchors_is_refused() -> None:
    student = adapt(build_detector(small("retinanet"), 3))
    teacher = adapt(build_detector(small("retinanet"), 5).eval())
    images, targets = make_batch()
    batch = student.batch(images)
    with pytest.raises(ValueError, match="teacher's anchors and classes: expected logits"):
        student.soft_pairs(student.train_pass(batch, targets), teacher, teacher.pyramid(batch))
    other = adapt(build_detector(small("retinanet", anchor_size=24), 3).eval())
    with pytest.raises(ValueError, match=r"teacher's anchors: expected the student's, of sizes \(16, "):
        student.soft_pairs(student.train_pass(batch, targets), other, other.pyramid(batch))


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_selected_outputs_score_like_the_full_model(detector: str) -> None:
    torch.manual_seed(0)
    full, part = build_detector(small(detector), 5), build_detector(small(detector), 2)
    part.load_state_dict(select_outputs(full.state_dict(), torch.tensor([0, 4, 2]), 6))
    if detector == "faster_rcnn":
        features = torch.randn(7, 32)
        logits, boxes = full.roi_heads.box_predictor(features)
        some_logits, some_boxes = part.roi_heads.box_predictor(features)
        torch.testing.assert_close(some_logits, logits[:, [0, 4, 2]])
        torch.testing.assert_close(some_boxes, boxes.unflatten(1, (6, 4))[:, [0, 4, 2]].flatten(1))
    else:
        features = [torch.randn(1, 16, 8, 8)]
        torch.testing.assert_close(
            part.head.classification_head(features), full.head.classification_head(features)[..., [0, 4, 2]]
        )


def test_only_torchvision_detectors_can_be_adapted() -> None:
    assert adapt(build_detector(small("retinanet"), 2)).stage == "one_stage"
    assert isinstance(adapt(build_detector(small("retinanet"), 2)).model, RetinaNet)
    with pytest.raises(TypeError, match="expected torchvision's FasterRCNN or RetinaNet, got Linear"):
        adapt(torch.nn.Linear(1, 1))
