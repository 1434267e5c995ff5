"""Losses of boxes by how far they overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def giou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - GIoU [...] (Rezatofighi et al., CVPR 2019) of boxes [...,4], as torchvision's, without a mask."""
    common, hull = (
        outer(boxes[..., 2:], truth[..., 2:]) - inner(boxes[..., :2], truth[..., :2])
        for outer, inner in ((torch.minimum, torch.maximum), (torch.maximum, torch.minimum))
    )
    intersection = common.clamp(min=0).prod(-1)
    union = sum((b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, truth)) - intersection
    area = hull.prod(-1)
    return 1 - intersection / (union + 1e-7) + (area - union) / (area + 1e-7)
