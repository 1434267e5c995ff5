"""Foreground and background squared differences, with the weight map painted from dense box masks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype


def masked_imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    strides: Sequence[float],
    *,
    overlap: str,
    base_size: float,
    trust: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums [2,L] and [2,L]; see `gkd_fast.ops.imitation_sums`. A base size of 0 paints every box on every level."""
    dtype = accumulation_dtype(student[0].dtype, teacher[0].dtype)
    level = imitation_level(boxes, len(student), base_size) if base_size else None
    parts = None if trust is None else trust.split([s.shape[0] * s.shape[2] * s.shape[3] for s in student])
    sums = []
    for index, (s, t, stride) in enumerate(zip(student, teacher, strides, strict=True)):
        value = omega[index].detach().to(dtype)
        paints = ~boxes.isnan().any(dim=1) & ~value.isnan()
        if level is not None:
            paints = paints & (level == index)
        corners, value = boxes.nan_to_num(nan=0.0), value.nan_to_num(nan=0.0)
        weight = _weight_map(s, corners, image_index, value, paints, stride, overlap)
        outside = (weight <= 0).to(dtype)
        square = (s.to(dtype) - t.to(dtype)).square().sum(dim=1)
        rest = outside if parts is None else outside * parts[index].detach().to(dtype).view_as(outside)
        sums.append(torch.stack([(weight * square).sum(), (rest * square).sum(), weight.sum(), outside.sum()]))
    squares, weights = torch.stack(sums, dim=1).split(2)
    return squares, weights.detach()


def imitation_level(boxes: Tensor, levels: int, base_size: float) -> Tensor:
    """clip(floor(log2(sqrt((w+1)(h+1)) / base + 1e-6)), 0, L-1) [B]; inverted boxes count as empty."""
    width, height = ((boxes[:, 2:] - boxes[:, :2] + 1.0).clamp(min=0.0)).unbind(1)
    size = (width * height).sqrt() / base_size
    return (size + 1e-6).log2().floor().clamp(0, levels - 1).nan_to_num(nan=0.0).long()


def _weight_map(
    feature: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    value: Tensor,
    paints: Tensor,
    stride: float,
    overlap: str,
) -> Tensor:
    """W [N,H,W]: boxes painted in order, those without area into a single cell."""
    images, _, height, width = feature.shape
    left, top, right, bottom = (boxes.clamp(min=0.0) / stride).clamp(max=max(height, width)).long().unbind(1)
    right, bottom = right.clamp(max=width), bottom.clamp(max=height)
    single = (left >= right) | (top >= bottom)

    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    covered = (rows[:, :, None] & columns[:, None, :] & (paints & ~single)[:, None, None]).flatten(1)

    image_row = image_index[:, None].expand(-1, height * width)
    order = torch.arange(1, boxes.shape[0] + 1, device=boxes.device)
    blank = value.new_zeros(images, height * width)
    last = torch.zeros_like(blank, dtype=torch.int64)
    if overlap == "max":
        area = blank.scatter_reduce(0, image_row, value[:, None] * covered, "amax")
    else:
        last = last.scatter_reduce(0, image_row, order[:, None] * covered, "amax")
        area = torch.cat([value.new_zeros(1), value])[last]

    # A single-cell box meets what was painted before it, and is overwritten by areas painted after it.
    cell = image_index * (height * width) + top.clamp(max=height - 1) * width + left.clamp(max=width - 1)
    stays = paints & single & (order > last.flatten()[cell])
    target = cell.where(stays, images * height * width)
    padded = torch.cat([area.flatten(), value.new_zeros(1)])
    painted = padded.scatter_reduce(0, target, value, "amax")
    return painted[:-1].view(images, height, width)
