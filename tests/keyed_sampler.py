"""torchvision's detectors with our samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gkd_fast import ops


class KeyedSampler:
    """torchvision's sampler with our draw: masks of positive and negative places.

    Proposals are fewer than there are places for, and ground truth stands behind all of these.
    """

    def __init__(self, like: Any, targets: list[dict[str, Any]], stage: int, proposals: int | None = None) -> None:
        self.like, self.targets, self.stage, self.proposals = like, targets, stage, proposals

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [self._draw(own, target) for own, target in zip(labels, self.targets, strict=True)]
        return [positive for positive, _ in pairs], [negative for _, negative in pairs]

    def _draw(self, labels: Tensor, target: dict[str, Any]) -> tuple[Tensor, Tensor]:
        own = torch.where(labels >= 1, 0, torch.where(labels == 0, -1, -2))
        place = torch.arange(len(own))
        if self.proposals is not None:
            found = len(own) - len(target["labels"])
            place = torch.where(place < found, place, place - found + self.proposals)
        matched = torch.full((1, int(place.max()) + 1), -2).scatter(1, place[None], own[None])
        seeds = torch.tensor([2 * target["draw"] + self.stage])
        limits = self.like.batch_size_per_image, self.like.positive_fraction
        _, drawn = ops.sample_balanced(matched, seeds, limits[0], positive_fraction=limits[1])
        return tuple((drawn[0, place] == kind).to(torch.uint8) for kind in (0, -1))


def draw_by_keys(model: nn.Module, targets: list[dict[str, Any]]) -> None:
    """Have a Faster R-CNN draw what ours draws; a RetinaNet draws nothing.

    Args:
        model: in training mode, changed in place.
        targets: of the next batch, with their ``draw``.
    """
    if not hasattr(model, "rpn"):
        return
    rpn, heads = model.rpn, model.roi_heads
    rpn.fg_bg_sampler = KeyedSampler(rpn.fg_bg_sampler, targets, 0)
    heads.fg_bg_sampler = KeyedSampler(heads.fg_bg_sampler, targets, 1, rpn.post_nms_top_n())
