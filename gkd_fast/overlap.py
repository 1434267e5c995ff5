"""Losses of boxes by how far they overlap: torchvision's, whose masks and products a GPU's host waits for."""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-7  # torchvision's


def giou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - GIoU [...] (Rezatofighi et al., CVPR 2019) of boxes [...,4]."""
    intersection, union = _intersection_and_union(boxes, truth)
    area = _area(_hull(boxes, truth))
    return 1 - intersection / (union + _EPSILON) + (area - union) / (area + _EPSILON)


def diou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - DIoU [...] (Zheng et al., AAAI 2020) of boxes [...,4]: IoU less the centres' distance in the hull."""
    return _loss_and_iou(boxes, truth)[0]


def ciou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - CIoU [...] (Zheng et al., AAAI 2020) of boxes [...,4]: DIoU less how far the sides' ratios differ."""
    loss, iou = _loss_and_iou(boxes, truth)
    angles = [torch.atan(width / height) for width, height in (_sides(b).unbind(-1) for b in (truth, boxes))]
    difference = (4 / torch.pi**2) * (angles[0] - angles[1]).square()
    weight = (difference / (1 - iou + difference + _EPSILON)).detach()
    return loss + weight * difference


def _loss_and_iou(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """1 - DIoU and the IoU."""
    intersection, union = _intersection_and_union(boxes, truth)
    iou = intersection / (union + _EPSILON)
    offset = (boxes[..., :2] + boxes[..., 2:]) / 2 - (truth[..., :2] + truth[..., 2:]) / 2
    diagonal = _hull(boxes, truth).square().sum(-1) + _EPSILON
    return 1 - iou + offset.square().sum(-1) / diagonal, iou


def _intersection_and_union(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(boxes[..., :2], truth[..., :2]), torch.minimum(boxes[..., 2:], truth[..., 2:])
    intersection = _area((high - low).clamp(min=0))
    return intersection, _area(_sides(boxes)) + _area(_sides(truth)) - intersection


def _hull(boxes: Tensor, truth: Tensor) -> Tensor:
    """Sides [...,2] of the smallest box around both."""
    return torch.maximum(boxes[..., 2:], truth[..., 2:]) - torch.minimum(boxes[..., :2], truth[..., :2])


def _sides(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _area(sides: Tensor) -> Tensor:
    # The gradient of prod() looks for zeros on the host.
    return sides[..., 0] * sides[..., 1]
