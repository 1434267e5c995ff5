"""Offsets of matched boxes from their anchors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def encode_boxes(anchors: Tensor, boxes: Tensor, matched: Tensor, weights: Sequence[float]) -> Tensor:
    """Offsets [N,A,4]; see `gkd_fast.ops.encode_boxes`."""
    if boxes.shape[1] == 0:
        return boxes.new_zeros(*matched.shape, 4)
    taken = matched.clamp(min=0)[:, :, None]
    own = boxes.gather(1, taken.expand(-1, -1, 4))
    sides, own_sides = (corners[..., 2:] - corners[..., :2] for corners in (anchors, own))
    centres, own_centres = (c[..., :2] + 0.5 * s for c, s in ((anchors, sides), (own, own_sides)))
    # In the order of torchvision's operations.
    moved = [
        w * d / s for w, d, s in zip(weights[:2], (own_centres - centres).unbind(2), sides.unbind(-1), strict=True)
    ]
    scaled = [w * ratio for w, ratio in zip(weights[2:], (own_sides / sides).log().unbind(2), strict=True)]
    return torch.stack([*moved, *scaled], 2).where(matched[:, :, None] >= 0, 0.0)
