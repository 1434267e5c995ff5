"""Checks of what the operators on anchors share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_fast.ops._checks import check_features, check_same_device, check_size, check_tensor


def check_anchors(anchors: Tensor, boxes: Tensor) -> None:
    """Check anchors [A,4] or [N,A,4] and boxes [N,G,4], float32."""
    check_tensor("boxes", boxes, "[N,G,4]", torch.float32)
    check_size("boxes", "last dimension", boxes.shape[2], 4)
    shared = isinstance(anchors, Tensor) and anchors.dim() == 2
    check_tensor("anchors", anchors, "[A,4]" if shared else "[N,A,4]", torch.float32)
    check_size("anchors", "last dimension", anchors.shape[-1], 4)
    if not shared:
        check_size("anchors", "N", anchors.shape[0], boxes.shape[0])


def check_matched(matched: Tensor, images: int) -> None:
    """Check matches, int64 [N,A]."""
    check_tensor("matched", matched, "[N,A]", torch.int64)
    check_size("matched", "N", matched.shape[0], images)


def check_anchor_maps(name: str, maps: Sequence[Tensor], values: int, matched: Tensor, weight: Tensor) -> None:
    """Check L maps [N,A_l*V,H_l,W_l] with V values of each anchor, their matches [N,A] and the images' weights [N]."""
    check_features(name, maps if isinstance(maps, Tensor) else [level[:, :values] for level in maps])
    check_matched(matched, maps[0].shape[0])
    check_tensor("weight", weight, "[N]", torch.float32)
    check_size("weight", "N", weight.shape[0], maps[0].shape[0])
    anchors = 0
    for level, values_of in enumerate(maps):
        if values_of.shape[1] % values:
            raise ValueError(f"{name}[{level}]: expected a multiple of {values} channels, got {values_of.shape[1]}")
        anchors += values_of.shape[1] // values * values_of.shape[2] * values_of.shape[3]
    check_size("matched", "A", matched.shape[1], anchors)
    check_same_device(**{name: maps[0], "matched": matched, "weight": weight})
