"""Losses of the predictions of all anchors, level by level."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype


def sigmoid_focal_loss(
    logits: Sequence[Tensor],
    matched: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    classes: int,
    alpha: float,
    gamma: float,
) -> Tensor:
    """The weighted loss; see `gkd_fast.ops.sigmoid_focal_loss`."""
    dtype = accumulation_dtype(logits[0].dtype)
    number = torch.arange(classes, device=matched.device)
    total = weight.new_zeros((), dtype=dtype)
    for rows, own in zip(anchor_rows(logits, classes), _by_level(matched, logits, classes), strict=True):
        own_label = own.new_full(own.shape, -1)
        if labels.shape[1]:
            own_label = labels.gather(1, own.clamp(min=0)).where(own >= 0, -1)
        truth, counts = own_label[:, :, None] == number, (own > -2)[:, :, None]
        # Before and after: what is left out may be no number, nor may its gradient.
        rows = rows.to(dtype).where(counts, 0.0)
        signed = torch.where(truth, rows, -rows)
        loss = F.softplus(-signed)
        if gamma:
            loss = loss * signed.neg().sigmoid() ** gamma
        if alpha >= 0:
            loss = loss * torch.where(truth, loss.new_full((), alpha), loss.new_full((), 1 - alpha))
        total = total + (loss.where(counts, 0.0).sum((1, 2)) * weight).sum()
    return total


def smooth_l1_loss(
    offsets: Sequence[Tensor], matched: Tensor, targets: Tensor, weight: Tensor, *, beta: float
) -> Tensor:
    """The weighted loss; see `gkd_fast.ops.smooth_l1_loss`."""
    dtype = accumulation_dtype(offsets[0].dtype)
    total = weight.new_zeros((), dtype=dtype)
    levels = _by_level(matched, offsets, 4)
    for rows, own, truth in zip(anchor_rows(offsets, 4), levels, _by_level(targets, offsets, 4), strict=True):
        counts = (own >= 0)[:, :, None]
        distance = (rows.to(dtype) - truth).where(counts, 0.0).abs()
        loss = distance
        if beta:
            loss = torch.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)
        total = total + (loss.where(counts, 0.0).sum((1, 2)) * weight).sum()
    return total


def anchor_rows(maps: Sequence[Tensor], values: int) -> list[Tensor]:
    """L maps [N,A*V,H,W] -> rows [N,H*W*A,V], in the order of torchvision's anchors."""
    return [
        level.unflatten(1, (level.shape[1] // values, values)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in maps
    ]


def _by_level(rows: Tensor, maps: Sequence[Tensor], values: int) -> tuple[Tensor, ...]:
    return rows.split([level.shape[1] // values * level.shape[2] * level.shape[3] for level in maps], dim=1)
