"""Assignment of ground truth to anchors from the whole matrix of IoUs."""

import torch
from torch import Tensor


def match_anchors(
    anchors: Tensor, boxes: Tensor, counts: Tensor, *, high: float, low: float, low_quality: bool
) -> Tensor:
    """Matches [N,A]; see `gkd_fast.ops.match_anchors`."""
    images, most = boxes.shape[:2]
    shape = images, anchors.shape[-2]
    if most == 0:
        return counts.new_full(shape, -1)
    number = torch.arange(most, device=boxes.device)
    real = (number < counts[:, None])[:, :, None]
    iou = _iou(boxes, anchors.expand(images, -1, -1)).masked_fill(~real, -1.0)
    best = iou.amax(1, keepdim=True)
    index = number[:, None].where(iou == best, most).amin(1)
    best = best[:, 0]
    matched = torch.where(best < low, -1, torch.where(best < high, -2, index))
    if low_quality and shape[1]:
        again = ((iou == iou.amax(2, keepdim=True)) & real).any(1)
        matched = torch.where(again, index, matched)
    return matched


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """[N,G,A], the operations of torchvision's box_iou one by one; 0 where they give no number."""
    a, b = boxes[:, :, None], anchors[:, None]
    width, height = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).unbind(-1)
    )
    common = width * height
    iou = common / (_area(boxes)[:, :, None] + _area(anchors)[:, None] - common)
    return iou.where(iou == iou, 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
