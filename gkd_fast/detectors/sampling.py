"""Sampling of anchors and proposals that depends on the image alone, not on who else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from gkd_fast import parallel


class ImageSampler(BalancedPositiveNegativeSampler):
    """torchvision's balanced sampler; where images have seeds, each is drawn from with its own.

    Args:
        like: the sampler to replace.
        stage: a number that makes the draws of several samplers different.

    Attributes:
        count: samples drawn from the last batch, where several processes train.
    """

    def __init__(self, like: BalancedPositiveNegativeSampler, stage: int) -> None:
        super().__init__(like.batch_size_per_image, like.positive_fraction)
        self.stage = stage
        self.seeds: list[int] | None = None
        self.count = 0

    def seed(self, targets: Sequence[dict[str, Any]]) -> None:
        """Take the images' seeds, ``draw`` in their targets; without them the default generator draws."""
        drawn = [target["draw"] for target in targets if "draw" in target]
        self.seeds = drawn if len(drawn) == len(targets) else None

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks uint8 [A_i] of the positive and the negative samples of each image.

        Args:
            matched_idxs: of each image [A_i]; at least 1: positive, 0: negative, -1: neither.
        """
        if self.seeds is None:
            positive, negative = super().__call__(matched_idxs)
        else:
            pairs = [self._draw(match, seed) for match, seed in zip(matched_idxs, self.seeds, strict=True)]
            positive, negative = map(list, zip(*pairs, strict=True))
        if parallel.world_size() > 1:
            self.count = sum(int(mask.sum()) for mask in (*positive, *negative))
        return positive, negative

    def _draw(self, matched: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(matched.device).manual_seed(2 * seed + self.stage)
        positive, negative = (torch.where(found)[0] for found in (matched >= 1, matched == 0))
        positives = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
        negatives = min(len(negative), self.batch_size_per_image - positives)
        masks = []
        for places, number in ((positive, positives), (negative, negatives)):
            order = torch.randperm(len(places), generator=generator, device=matched.device)[:number]
            masks.append(torch.zeros_like(matched, dtype=torch.uint8).index_fill_(0, places[order], 1))
        return masks[0], masks[1]
