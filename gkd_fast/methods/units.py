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
_LEAST = 1e-30  # variance below which what is divided by the deviation has no finite square in float32


@dataclass(frozen=True)
class Units:
    """What the teacher's maps are measured in.

    Attributes:
        means: of each level, the mean of every channel [C_l]; one tensor [L,C] where all levels have as many.
        variances: [L], the mean over a level's channels of the variance around their means.
        deviations: [L], their square roots.
    """

    means: Tensor | list[Tensor]
    variances: Tensor
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
        self._channels: list[int] = []
        self._mean = self._variance = torch.empty(0)
        self._final: Units | None = None

    @property
    def settled(self) -> bool:
        """Whether they stay as they are from now on."""
        return self._seen >= self.steps

    @torch.no_grad()
    def add(self, maps: Sequence[Tensor]) -> None:
        """Take the maps [N,C_l,H_l,W_l] of a step; to be called by every process. Inf and nan count nothing.

        Means and variances are combined as such: a difference of squares would be all rounding on a level that hardly
        varies.
        """
        if self.settled:
            return
        self._seen += 1
        mean, variance, there = _of_all_processes([torch.var_mean(f.float(), (0, 2, 3), correction=0) for f in maps])
        if self._count is None:
            self._channels = [feature.shape[1] for feature in maps]
            self._count, self._mean, self._variance = there, mean, variance
            return
        self._count = self._count + there
        share = there / self._count.clamp(min=1)
        step = mean - self._mean
        self._variance = self._variance + share * (variance - self._variance) + share * (1 - share) * step.square()
        self._mean = self._mean + share * step

    def units(self) -> Units:
        """Of the steps so far. A level that does not vary has variance 1."""
        if self._final is not None:
            return self._final
        means = list(self._mean.split(self._channels))
        variances = torch.stack([part.mean() for part in self._variance.split(self._channels)])
        squares = torch.stack([mean.square().mean() for mean in means]) + variances
        variances = variances.where(variances > (1e-10 * squares).clamp(min=_LEAST), 1.0)
        one_width = len(set(self._channels)) == 1
        units = Units(self._mean.view(len(means), -1) if one_width else means, variances, variances.sqrt())
        if self.settled:
            self._final = units
        return units

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes; equal in all processes."""
        count = None if self._count is None else self._count.cpu()
        moments = {"mean": self._mean.cpu(), "variance": self._variance.cpu()}
        return {"seen": self._seen, "count": count, "channels": self._channels, **moments}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`, on a device."""
        self._seen, self._channels, self._final = state["seen"], list(state["channels"]), None
        self._count = None if state["count"] is None else state["count"].to(device)
        self._mean, self._variance = (state[name].to(device) for name in ("mean", "variance"))


def _of_all_processes(levels: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every channel of all levels [C] over the processes whose own are finite, and 1, or 0 where
    there is none."""
    variances, means = (torch.cat(parts) for parts in zip(*levels, strict=True))
    finite = (means + variances).isfinite().all()
    means, variances = (torch.where(finite, moment, 0.0) for moment in (means, variances))
    own = finite.float()[None]
    # One collective for both moments, and for how many processes have them.
    mean, variance, number = parallel.total(torch.cat([means, variances, own])).split([len(means), len(means), 1])
    count = number.clamp(min=1)
    mean, variance = mean / count, variance / count
    if parallel.world_size() > 1:
        variance = variance + parallel.total(own * (means - mean).square()) / count
    return mean, variance, (number[0] > 0).float()


def pixel_factor(units: Units | None, images: Tensor) -> float:
    """What turns a sum over the cells of a batch's maps into one over maps of the published size; 1 without units."""
    return 1.0 if units is None else PUBLISHED_PIXELS / (images.shape[-2] * images.shape[-1])


def channel_factor(units: Units | None, feature: Tensor) -> float:
    """What turns a sum over the channels of a map [N,C,H,W] into one over the published number; 1 without units."""
    return 1.0 if units is None else PUBLISHED_CHANNELS / feature.shape[1]


def image_factor(units: Units | None, images: Tensor) -> float:
    """What turns a sum over a batch's images into one over the published batch of a device; 1 without units."""
    return 1.0 if units is None else PUBLISHED_IMAGES / images.shape[0]
