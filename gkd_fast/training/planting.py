"""Damage in what the teacher sees of some instances: whether robust weights find it can then be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.data.settings import DataConfig
from gkd_fast.instances import Instances

_BLURRED_SIDE = 3  # pixels a side that are left of a blurred box
_COVERED = 0.71  # of each side, half of the area


class Planting:
    """Damages a part of the instances in a copy of the images, the same instances in every epoch.

    Args:
        kind: "blur": only 3 x 3 pixels are left of a box; "occlusion": the middle half of its area is covered by the
            mean colour; "swap": it shows an instance of another class from the batch, and with it the teacher's label
            is wrong. Where the batch has no other class, nothing is swapped.
        share: of the instances.
        seed: of the choice.
    """

    def __init__(self, kind: str, share: float, seed: int) -> None:
        self.kind, self.share, self.seed = kind, share, seed

    @classmethod
    def of(cls, data: DataConfig, seed: int) -> Self | None:
        """As the settings say; None: nothing is planted."""
        return None if data.teacher_noise == "none" else cls(data.teacher_noise, data.teacher_noise_share, seed)

    def __call__(self, images: Tensor, truth: Instances, image_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images as the teacher sees them [N,3,H,W], and which instances are damaged, bool [B].

        Args:
            images: [N,3,H,W], normalised.
            truth: all boxes of each image, in the data's order.
            image_ids: of the N images.
        """
        shown, index, labels = images.clone(), truth.image_index.tolist(), truth.labels.tolist()
        windows = [_window(box, images.shape[-2:]) for box in truth.boxes.tolist()]
        draws = self._draws(index, image_ids)
        planted = torch.zeros(len(index), dtype=torch.bool)
        for number, (draw, other) in enumerate(draws):
            if draw >= self.share:
                continue
            target = shown[index[number]][:, windows[number][0], windows[number][1]]
            content = self._content(images, number, index, labels, windows, other)
            if content is not None:
                target.copy_(content)
                planted[number] = True
        return shown, planted.to(images.device)

    def _draws(self, index: Sequence[int], image_ids: Sequence[int]) -> list[tuple[float, float]]:
        """Two numbers in 0..1 for every instance, by its image and its place in it."""
        generators = [np.random.default_rng((self.seed, int(image))) for image in image_ids]
        return [tuple(generators[image].random(2).tolist()) for image in index]

    def _content(
        self,
        images: Tensor,
        number: int,
        index: Sequence[int],
        labels: Sequence[int],
        windows: Sequence[tuple[slice, slice]],
        other: float,
    ) -> Tensor | None:
        """What stands in the place of an instance [3,h,w]; None where there is nothing for it."""

        def shows(instance: int) -> Tensor:
            rows, columns = windows[instance]
            return images[index[instance]][:, rows, columns]

        own = shows(number)
        size = own.shape[-2:]
        if self.kind == "occlusion":
            covered = own.clone()
            above, left = (round(side * (1 - _COVERED) / 2) for side in size)
            covered[:, above : size[0] - above, left : size[1] - left] = 0.0
            return covered
        if self.kind == "blur":
            few = F.adaptive_avg_pool2d(own[None], _BLURRED_SIDE)
            return F.interpolate(few, size, mode="bilinear", align_corners=False)[0]
        others = [instance for instance, label in enumerate(labels) if label != labels[number]]
        if not others:
            return None
        chosen = shows(others[int(other * len(others))])
        return F.interpolate(chosen[None], size, mode="bilinear", align_corners=False)[0]


def _window(box: Sequence[float], size: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a box touches, at least one."""
    height, width = size
    x1, y1 = (min(max(int(at), 0), side - 1) for at, side in zip(box[:2], (width, height), strict=True))
    x2, y2 = (
        min(max(-int(-at // 1), first + 1), side)
        for at, first, side in zip(box[2:], (x1, y1), (width, height), strict=True)
    )
    return slice(y1, y2), slice(x1, x2)
