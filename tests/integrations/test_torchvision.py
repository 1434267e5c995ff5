"""torchvision's detectors: pixels, boxes and normalisation are those of the student's transform."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import gkd_fast
from gkd_fast.integrations.torchvision import Distiller


def fcos(width: float, side: int = 64, **options) -> FCOS:
    torch.manual_seed(0)
    features = mobilenet_v2(width_mult=width).features
    channels = [features[index].conv[-1].num_features for index in (3, 6)]
    body = BackboneWithFPN(features, {"3": "0", "6": "1"}, channels, 32)
    anchors = AnchorGenerator([(8,), (16,), (32,)], [(1.0,)] * 3)
    return FCOS(body, 4, min_size=side, max_size=2 * side, anchor_generator=anchors, **options).train()


@pytest.fixture
def batch():
    """Two images of other shapes and sizes than the students' batch."""
    torch.manual_seed(1)
    images = [torch.rand(3, 96, 128), torch.rand(3, 128, 128)]
    boxes = [torch.tensor([[8.0, 12, 60, 70], [40, 4, 120, 90]]), torch.tensor([[20.0, 30, 100, 110]])]
    labels = [torch.tensor([1, 3]), torch.tensor([2])]
    return images, [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]


def test_terms_are_those_of_the_plain_distiller_on_the_transformed_batch(batch) -> None:
    images, targets = batch
    teacher, student = fcos(0.5).eval(), fcos(0.35)
    torch.manual_seed(2)
    distiller = Distiller(teacher, student, 3, min_box=4)
    student(images, targets)
    found = distiller(images, targets)
    distiller.remove()
    prepared, resized = student.transform(images, targets)
    assert prepared.tensors.shape[-2:] != images[0].shape[-2:]
    torch.manual_seed(2)
    run = {name: (lambda net, x: net.backbone(x)) for name in ("run_student", "run_teacher")}
    plain = gkd_fast.Distiller(teacher, student, 3, ["backbone"], example=torch.zeros(1, 3, 64, 64), min_box=4, **run)
    plain.load_state_dict(distiller.state_dict() | {"_extra_state": plain.get_extra_state()})
    student.backbone(prepared.tensors)
    expected = plain(prepared.tensors, [t["boxes"] for t in resized], [t["labels"] - 1 for t in resized])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_teacher_gets_its_own_normalisation(batch) -> None:
    """Of the same pixels; padding stays zero."""
    images, targets = batch
    teacher = fcos(0.5, image_mean=[0.5] * 3, image_std=[0.25] * 3).eval()
    student = fcos(0.35)
    distiller = Distiller(teacher, student, 3, min_box=4)
    seen = []
    teacher.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    student(images, targets)
    distiller(images, targets)
    expected = teacher.transform(images)[0].tensors
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_prototypes_by_a_pass_and_from_the_steps(batch) -> None:
    images, targets = batch
    targets = [{**target, "image_id": number} for number, target in enumerate(targets)]
    student = fcos(0.35)
    distiller = Distiller(fcos(0.5), student, 3, min_box=4, refresh_steps=2)
    bank = distiller.refresh([(images, targets)])
    assert bank.student.shape[0] == 3
    for _ in range(2):
        losses = student(images, targets)
        terms = distiller(images, targets)
        (sum(losses.values()) + sum(terms.values())).backward()
    assert terms["gkd_global"] > 0
    assert distiller.bank is not bank


def test_copies_are_plain_and_hooks_can_be_removed(batch) -> None:
    images, targets = batch
    student = fcos(0.35)
    distiller = Distiller(fcos(0.5), student, 3, min_box=4)
    student(images, targets)
    other = copy.deepcopy(student)
    assert b"gkd_fast" not in pickle.dumps(student)
    other(images[:1], targets[:1])  # does not reach the distiller
    assert len(distiller(images, targets)) == 3
    distiller.remove()
    assert not any(module._forward_hooks for module in student.modules())


def test_what_is_wrong_is_said(batch) -> None:
    images, targets = batch
    student = fcos(0.35)
    with pytest.raises(TypeError, match=r"^teacher: expected a torchvision detector, .* got Linear"):
        Distiller(torch.nn.Linear(1, 1), student, 3)
    distiller = Distiller(fcos(0.5), student, ["a", "b"], min_box=4)
    with pytest.raises(RuntimeError, match=r"^student: expected student\(images, targets\) before the distiller"):
        distiller(images, targets)
    student(images, targets)
    with pytest.raises(ValueError, match=r"^images, targets: expected the 2 that the student was run on, got 1 and 1$"):
        distiller(images[:1], targets[:1])
    student(images, targets)
    with pytest.raises(ValueError, match=r"^labels: expected 0 to 1 for the 2 classes, got 0 to 2"):
        distiller(images, targets)
