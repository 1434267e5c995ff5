"""CrossKD: cross-head knowledge distillation (Wang et al., CVPR 2024, arXiv 2306.11369)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, aligned, standardised
from gkd_fast.methods.settings import CrossKDSettings
from gkd_fast.overlap import giou_loss

_CROSSING = 3  # convolutions of the student's head before its map enters the teacher's (published configuration)
_BETWEEN_THRESHOLDS = -2  # torchvision's Matcher: neither object nor background


class CrossKD(nn.Module):
    """The student's head up to its third convolution, finished by the teacher's frozen head, imitates the teacher.

    With p crossed and t the teacher's predictions, over all anchors that the matcher decided on:

    class  sum |sigma(p) - sigma(t)| BCE(p, sigma(t)) / N_pos
    box    sum max_c sigma(t_c) (1 - GIoU(decode(p), decode(t))) / N_pos

    Before the crossing the student's channels get the mean and deviation of the teacher's. A 1x1 convolution precedes
    where the channels differ. N_pos counts the batch's positive anchors.
    """

    parts = ("class", "box")

    def __init__(self, setup: Setup, config: CrossKDSettings) -> None:
        super().__init__()
        self.align_class, self.align_box = (aligned(setup, 1)[0] for _ in range(2))
        self.class_weight = config.crosskd_class_weight
        self.box_weight = config.crosskd_box_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``class`` and ``box``.

        Raises:
            ValueError: if both networks differ in anchors or classes.
        """
        shown = step.detection
        student, teacher = shown.student.model, shown.teacher.model
        crossed_class, teacher_class = self._predictions(step, "classification_head", "cls_logits", self.align_class)
        crossed_box, teacher_box = self._predictions(step, "regression_head", "bbox_reg", self.align_box)
        matched = shown.own.soft["matched"]
        expected = [*matched.shape, student.head.classification_head.num_classes]
        if list(teacher_class.shape) != expected:
            raise ValueError(
                f"teacher's anchors and classes: expected logits {expected}, got {list(teacher_class.shape)}"
            )
        positives = (matched >= 0).sum().clamp(min=1)
        decided = (matched != _BETWEEN_THRESHOLDS).to(teacher_class.dtype)
        assert step.anchors is not None
        anchors = torch.cat(step.anchors())
        boxes = decode(crossed_box, anchors, student), decode(teacher_box, anchors, teacher)
        # Output 0 of torchvision's RetinaNet is the background, which is never a target.
        terms = (
            class_loss(crossed_class[..., 1:], teacher_class[..., 1:], decided),
            box_loss(*boxes, teacher_class[..., 1:], decided),
        )
        return {"class": self.class_weight * terms[0] / positives, "box": self.box_weight * terms[1] / positives}

    def _predictions(self, step: Step, head: str, last: str, align: nn.Module) -> tuple[Tensor, Tensor]:
        """Crossed and teacher's predictions of one branch, [N,sum H_l W_l A,K] each."""
        networks = step.detection.student, step.detection.teacher
        own, other = (getattr(network.model.head, head) for network in networks)
        crossed, reference = [], []
        for student, teacher in zip(step.student, step.teacher_own, strict=True):
            with torch.no_grad():
                hidden = _hidden(other, teacher)
                reference.append(_finish(other, last, hidden))
                _, mean, deviation = standardised(hidden)
            like_teacher = standardised(align(_hidden(own, student)))[0] * deviation + mean
            crossed.append(_finish(other, last, like_teacher))
        per_location = other.num_classes if last == "cls_logits" else 4
        return _anchor_rows(crossed, per_location), _anchor_rows(reference, per_location)


def _hidden(head: Any, feature: Tensor) -> Tensor:
    """The map behind the crossing's last convolution, before its activation."""
    hidden = head.conv[: _CROSSING - 1](feature)
    for layer in list(head.conv[_CROSSING - 1])[:-1]:
        hidden = layer(hidden)
    return hidden


def _finish(head: Any, last: str, hidden: Tensor) -> Tensor:
    """The head's prediction [N,A*K,H,W] from the map at the crossing."""
    return getattr(head, last)(head.conv[_CROSSING:](F.relu(hidden)))


def _anchor_rows(maps: list[Tensor], values: int) -> Tensor:
    """L maps [N,A*K,H,W] -> [N,sum H W A,K], in the order of torchvision's anchors."""
    rows = [level.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in maps]
    return torch.cat(rows, dim=1)


def decode(codes: Tensor, anchors: Tensor, network: Any) -> Tensor:
    """Boxes [N,M,4] from codes [N,M,4] at anchors [M,4], by the detector's own box coder."""
    from gkd_fast.detectors import proposals  # torchvision's detectors take seconds to import

    return proposals.decode(network.head.regression_head.box_coder, codes, anchors)


def class_loss(crossed: Tensor, teacher: Tensor, decided: Tensor) -> Tensor:
    """sum |sigma(p) - sigma(t)| BCE(p, sigma(t)) of logits [N,M,K] over the decided anchors [N,M]."""
    target = teacher.sigmoid()
    loss = F.binary_cross_entropy_with_logits(crossed, target, reduction="none") * (crossed.sigmoid() - target).abs()
    return (loss.sum(-1) * decided).sum()


def box_loss(crossed: Tensor, teacher: Tensor, logits: Tensor, decided: Tensor) -> Tensor:
    """sum max_c sigma(t_c) (1 - GIoU) of boxes [N,M,4] over the decided anchors [N,M]."""
    weight = logits.amax(-1).sigmoid() * decided
    return (giou_loss(crossed, teacher) * weight).sum()
