"""Non-maximum suppression, all images together and one box after another."""

import torch
from torch import Tensor


def batched_nms(boxes: Tensor, groups: Tensor, order: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Kept places [N,M] and their numbers [N]; see `gkd_fast.ops.batched_nms`.

    Args:
        boxes: float32 [N,K,4].
        groups: int64 [N,K].
        order: int64 [N,K], places by descending score.
        threshold: boxes whose IoU with a better one is at least this float32 are left out.
        most: M.
    """
    images, places = groups.shape
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    groups = groups.gather(1, order)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    kept = groups >= 0
    later = torch.arange(places, device=boxes.device)
    for place in range(places):
        corner = torch.maximum(boxes[:, place, None, :2], boxes[..., :2])
        sides = (torch.minimum(boxes[:, place, None, 2:], boxes[..., 2:]) - corner).clamp(min=0)
        common = sides[..., 0] * sides[..., 1]
        iou = common / (area[:, place, None] + area - common)
        same = groups == groups[:, place, None]
        kept = kept & ~(kept[:, place, None] & same & (iou >= threshold) & (later > place))
    number = kept.cumsum(1)
    kept = kept & (number <= most)
    slots = order.new_full((images, most + 1), -1)
    slots = slots.scatter(1, (number - 1).where(kept, most), order.where(kept, -1))
    return slots[:, :most].contiguous(), kept.sum(1)
