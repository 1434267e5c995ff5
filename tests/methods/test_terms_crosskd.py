"""Crossed heads, against plain Python arithmetic on heads of one channel whose convolutions see a single cell."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from term_cases import iou, make_map, make_setup, make_step, tiny_batch, tiny_detectors
from torch import nn
from torchvision.models.detection.retinanet import RetinaNetHead

from gkd_fast.methods import Settings
from gkd_fast.methods.crosskd import CrossKD

ANCHORS = [[0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8], [24, 0, 32, 8]]
STUDENT, TEACHER = [1, 2, 4, 7], [4, 0, 2, 3]
# Factor and offset of a head's four convolutions; each is followed by max(x, 0). The student's last is never used.
STUDENT_LAYERS = [(1, 1), (2, -5), (1, -2), (99, 99)]
TEACHER_LAYERS = [(1, 0), (3, -2), (1, -3), (0.5, 1)]
CLASS_FACTORS = [9.0, 0.5, -1.0]  # background (unused) and two classes, from the head's only channel
SHIFT = 0.25  # of the box, per unit of the channel


@torch.no_grad()
def make_network(layers: list[tuple[float, float]], factors: list[float]) -> SimpleNamespace:
    """A detector whose head predicts logits and a shift along x in proportion to its last map."""
    head = RetinaNetHead(1, 1, len(factors))
    for branch in (head.classification_head, head.regression_head):
        for block, (factor, offset) in zip(branch.conv, layers, strict=True):
            nn.init.dirac_(block[0].weight).mul_(factor)
            nn.init.constant_(block[0].bias, offset)
    for last in (head.classification_head.cls_logits, head.regression_head.bbox_reg):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    head.classification_head.cls_logits.weight[:, 0, 1, 1] = torch.tensor(factors)
    head.regression_head.bbox_reg.weight[0, 0, 1, 1] = SHIFT
    return SimpleNamespace(model=SimpleNamespace(head=head))


def through(values: list[float], layers: list[tuple[float, float]]) -> list[float]:
    """Behind the last layer, before its max(x, 0)."""
    for index, (factor, offset) in enumerate(layers):
        values = [factor * (max(0.0, value) if index else value) + offset for value in values]
    return values


def moments(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def shifted(anchor: list[int], value: float) -> list[float]:
    move = SHIFT * value * (anchor[2] - anchor[0])
    return [anchor[0] + move, anchor[1], anchor[2] + move, anchor[3]]


def giou(a: list[float], b: list[float]) -> float:
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) / (1 + iou(a, b))
    return iou(a, b) - (hull - union) / hull


@pytest.mark.parametrize("matched", [[0, -1, -2, 0], [-1, -1, -1, -1]])
def test_the_teachers_head_finishes_the_students_map(matched: list[int]) -> None:
    student, teacher = make_network(STUDENT_LAYERS, [0.0, 0, 0]), make_network(TEACHER_LAYERS, CLASS_FACTORS)
    hidden_s, hidden_t = through(STUDENT, STUDENT_LAYERS[:3]), through(TEACHER, TEACHER_LAYERS[:3])
    (mean_s, deviation_s), (mean_t, deviation_t) = moments(hidden_s), moments(hidden_t)
    crossed = [(value - mean_s) / (deviation_s + 1e-6) * deviation_t + mean_t for value in hidden_s]
    answers = []
    for hidden in (crossed, hidden_t):
        active = [max(0.0, value) for value in hidden]
        answers.append([max(0.0, value) for value in through(active, TEACHER_LAYERS[3:])])
    expected_class = expected_box = 0.0
    for index, (own, other) in enumerate(zip(*answers, strict=True)):
        if matched[index] == -2:  # between the matcher's thresholds
            continue
        for factor in CLASS_FACTORS[1:]:
            p, t = sigmoid(factor * own), sigmoid(factor * other)
            expected_class += abs(p - t) * -(t * math.log(p) + (1 - t) * math.log(1 - p))
        trust = max(sigmoid(factor * other) for factor in CLASS_FACTORS[1:])
        expected_box += trust * (1 - giou(shifted(ANCHORS[index], own), shifted(ANCHORS[index], other)))
    positives = max(1, sum(value >= 0 for value in matched))

    soft = {"matched": torch.tensor([matched]), "logits": torch.zeros(1, 4, 3)}
    step = make_step(
        make_map([STUDENT]),
        make_map([TEACHER]),
        detection=SimpleNamespace(own=SimpleNamespace(soft=soft), student=student, teacher=teacher),
        anchors=lambda: [torch.tensor(ANCHORS, dtype=torch.float32)],
    )
    config = Settings(crosskd_class_weight=2.0, crosskd_box_weight=3.0)
    found = {name: value.item() for name, value in CrossKD(make_setup(), config)(step).items()}
    expected = {"class": 2 * expected_class / positives, "box": 3 * expected_box / positives}
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_student_like_its_teacher_costs_nothing() -> None:
    student, _ = tiny_detectors("retinanet", channels=(8, 8))
    student.model.eval()
    images, targets = tiny_batch(student)
    own = student.train_pass(images, targets)
    step = make_step(
        own.features,
        [feature.detach() for feature in own.features],
        detection=SimpleNamespace(own=own, student=student, teacher=student),
        anchors=lambda: student.anchors(images.tensors, own.features),
    )
    found = CrossKD(make_setup(8, levels=5), Settings())(step)
    # The deviation's guard against zero shows where a map is one cell wide.
    assert sum(found.values()).item() < 1e-2 * sum(own.losses.values()).item()


def test_other_classes_are_an_error() -> None:
    student, teacher = make_network(STUDENT_LAYERS, [0.0, 0]), make_network(TEACHER_LAYERS, CLASS_FACTORS)
    soft = {"matched": torch.tensor([[0, 0, 0, 0]]), "logits": torch.zeros(1, 4, 2)}
    step = make_step(
        make_map([STUDENT]),
        make_map([TEACHER]),
        detection=SimpleNamespace(own=SimpleNamespace(soft=soft), student=student, teacher=teacher),
        anchors=lambda: [torch.tensor(ANCHORS, dtype=torch.float32)],
    )
    with pytest.raises(ValueError, match=r"expected logits \[1, 4, 2\], got \[1, 4, 3\]"):
        CrossKD(make_setup(), Settings())(step)
