"""The teacher's maps as the unit of feature losses: one weight then means the same for every teacher and image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gkd_fast import parallel

PUBLISHED_CHANNELS = 256
PUBLISHED_PIXELS = 800 * 1344  # 800 x 1333 padded to a multiple of 32
PUBLISHED_IMAGES = 2  # of a device, in the published runs
_STEPS = 50  # an average over them is within a few percent of that over the data set


@dataclass(frozen=True)
class Units:
    """What the teacher's maps are measured in.

    Attributes:
        means: of each level, the mean of every channel [C_l].
        deviations: [L], square root of each level's variance: the mean over the channels of the variance around their
            means.
    """

    means: list[Tensor]
    deviations: Tensor


class TeacherUnits:
    """Mean and variance of the teacher's maps over the first training steps, of all processes.

    They are taken where the teacher runs anyway, so that they need no pass and every method has them. The first step
    already counts in them; after the last they stay as they are.

    Args:
        steps: so many.
    """

    def __init__(self, steps: int = _STEPS) -> None:
        self.steps = steps
        self._seen = 0
        self._count: Tensor | None = None
        self._sums: list[Tensor] = []
        self._final: Units | None = None

    @property
    def complete(self) -> bool:
        """Whether the units stay as they are from now on."""
        return self._seen >= self.steps

    @torch.no_grad()
    def add(self, maps: Sequence[Tensor]) -> None:
        """Take the maps [N,C_l,H_l,W_l] of a step; to be called by every process. Inf and nan count nothing."""
        if self.complete:
            return
        self._seen += 1
        own = [torch.stack([f.float().mean((0, 2, 3)), f.float().square().mean((0, 2, 3))]) for f in maps]
        flat = torch.cat([moments.flatten() for moments in own])
        finite = flat.isfinite().all()
        # One collective for all levels, and for how many processes had finite maps.
        shared = parallel.total(torch.cat([flat.nan_to_num(0, 0, 0) * finite, finite[None].float()]))
        parts = shared[:-1].split([moments.numel() for moments in own])
        moments = [part.view_as(other) for part, other in zip(parts, own, strict=True)]
        if self._count is None:
            self._count, self._sums = shared[-1], moments
        else:
            self._count = self._count + shared[-1]
            self._sums = [last + new for last, new in zip(self._sums, moments, strict=True)]

    def units(self) -> Units:
        """Of the steps so far. A level that does not vary has deviation 1."""
        if self._final is not None:
            return self._final
        assert self._count is not None
        averages = [total / self._count.clamp(min=1) for total in self._sums]
        variances = torch.stack([(square - mean.square()).mean() for mean, square in averages])
        negligible = variances <= 1e-10 * torch.stack([square.mean() for _, square in averages])
        units = Units([mean for mean, _ in averages], variances.sqrt().where(~negligible, 1.0))
        if self.complete:
            self._final = units
        return units

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes; equal in all processes."""
        count = None if self._count is None else self._count.cpu()
        return {"seen": self._seen, "count": count, "sums": [total.cpu() for total in self._sums]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`, on a device."""
        self._seen, self._final = state["seen"], None
        self._count = None if state["count"] is None else state["count"].to(device)
        self._sums = [total.to(device) for total in state["sums"]]


def pixel_factor(units: Units | None, images: Tensor) -> float:
    """What turns a sum over the cells of a batch's maps into one over maps of the published size; 1 without units."""
    return 1.0 if units is None else PUBLISHED_PIXELS / (images.shape[-2] * images.shape[-1])


def channel_factor(units: Units | None, feature: Tensor) -> float:
    """What turns a sum over the channels of a map [N,C,H,W] into one over the published number; 1 without units."""
    return 1.0 if units is None else PUBLISHED_CHANNELS / feature.shape[1]


def image_factor(units: Units | None, images: Tensor) -> float:
    """What turns a sum over a batch's images into one over the published batch of a device; 1 without units."""
    return 1.0 if units is None else PUBLISHED_IMAGES / images.shape[0]
