"""Mean of the feature cells under each box, by two-dimensional prefix sums."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def box_mean_pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    strides: Sequence[float],
    *,
    negative: str,
    exact: bool = False,
) -> Tensor:
    """Embeddings [L,B,C]; see `gkd_fast.ops.box_mean_pool`."""
    undefined = boxes.isnan().any(dim=1)
    finite = boxes.nan_to_num(nan=0.0)
    corners = finite.abs() if negative == "mirror" else finite
    dtype = torch.promote_types(features[0].dtype, torch.float32) if exact else features[0].dtype
    levels = [
        _pool_level(feature, corners, image_index, stride).to(dtype)
        for feature, stride in zip(features, strides, strict=True)
    ]
    return torch.stack(levels).masked_fill(undefined[:, None], float("nan"))


def _pool_level(feature: Tensor, corners: Tensor, image_index: Tensor, stride: float) -> Tensor:
    height, width = feature.shape[-2:]
    x1, y1, x2, y2 = (corners / stride).floor().unbind(1)
    left, right = _cell_range(x1, x2, width)
    top, bottom = _cell_range(y1, y2, height)

    # Differences of large sums cancel: float64 keeps the mean exact to float32 rounding.
    prefix = F.pad(feature.double(), (1, 0, 1, 0)).cumsum(3).cumsum(2)

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return prefix[image_index, :, y, x]

    total = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    cells = (bottom - top) * (right - left)
    return total / cells[:, None]


def _cell_range(lower: Tensor, upper: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First cell and one past the last, both inside the map, at least one cell."""
    first = lower.clamp(0, size - 1).long()
    last = upper.clamp(0, size - 1).long()
    return first, torch.maximum(first, last) + 1
