"""What a training step offers to a distillation method, and what several methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkd_fast.instances import Instances
from gkd_fast.methods.units import Units


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The networks' shapes, known before training.

    Attributes:
        stage: ``two_stage`` or ``one_stage``.
        student_channels, teacher_channels: of the L levels of both pyramids.
        offered: what there is beside maps and boxes: ``anchors``, ``logits``, ``proposals``, ``crossed heads``.
    """

    stage: str
    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    offered: frozenset[str] = frozenset()

    @property
    def levels(self) -> int:
        """Levels of both pyramids."""
        return len(self.student_channels)

    @property
    def own_levels(self) -> int:
        """Levels with content of their own: a two-stage pyramid's last level repeats cells of the one before."""
        return self.levels - 1 if self.stage == "two_stage" and self.levels > 1 else self.levels

    def channels(self, levels: int) -> list[tuple[int, int]]:
        """Channels of student and teacher on each of the first levels."""
        return list(zip(self.student_channels, self.teacher_channels, strict=True))[:levels]

    def of(self, pair: tuple[float, float]) -> float:
        """The two-stage or the one-stage value of a setting."""
        return pair[1] if self.stage == "one_stage" else pair[0]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step offers.

    Attributes:
        student: L raw maps [N,C_S,H_l,W_l], with gradient.
        teacher: L maps [N,C_T,H_l,W_l] of the same sizes, without gradient.
        teacher_own: the same in the teacher's own sizes.
        strides, teacher_strides: of the L levels of `student` and `teacher_own`, in pixels.
        truth: the ground truth, B instances; class -1 marks padding, whose `weights` are 0.
        instances: what global knowledge compares: the positive proposals of a two-stage detector, or the ground truth.
        units: what the teacher's maps are measured in; `teacher` is divided by the deviations, but for methods that
            take raw maps. None: as published.
        weights: [L,B], what each ground-truth instance counts in a mask: 1, or its robust weight.
        images: [N,3,H,W], the padded batch.
        bank: the prototypes, None where there are none yet.
        kappa: attenuation, a scalar on the device.
        anchors: gives the student's anchors of each level [H_l*W_l*A,4], cell by cell.
        soft: gives logits of both networks for soft labels, from the robust weights' level of each instance; or None.
        detection: what a torchvision detector showed in this step (`gkd_fast.detectors.Detection`), or None.
    """

    student: list[Tensor]
    teacher: list[Tensor]
    teacher_own: list[Tensor]
    strides: tuple[float, ...]
    teacher_strides: tuple[float, ...]
    truth: Instances
    instances: Instances
    weights: Tensor
    images: Tensor
    units: Units | None = None
    bank: Any = None
    kappa: Tensor | float = 1.0
    anchors: Callable[[], list[Tensor]] | None = None
    soft: Callable[[], Any] | None = None
    detection: Any = None


def aligned(setup: Setup, levels: int) -> nn.ModuleList:
    """For each level a 1x1 convolution to the teacher's channels, or nothing where the channels are equal."""
    return nn.ModuleList(
        nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
        for student, teacher in setup.channels(levels)
    )


def near_zero_adapters(setup: Setup, levels: int) -> nn.ModuleList:
    """For each level a 3x3 convolution to the teacher's channels that starts near 0 (normal, 1e-4, cut at 2)."""
    adapters = [nn.Conv2d(student, teacher, 3, padding=1) for student, teacher in setup.channels(levels)]
    for adapter in adapters:
        nn.init.trunc_normal_(adapter.weight, std=1e-4, a=-2e-4, b=2e-4)
        assert adapter.bias is not None
        nn.init.zeros_(adapter.bias)
    return nn.ModuleList(adapters)


def paint(covered: Tensor, value: Tensor, image_index: Tensor, images: int) -> Tensor:
    """A map per image of the largest value among the instances that cover a cell, 0 where there are none.

    Args:
        covered: bool [B,H,W].
        value: [B], not negative.
        image_index: int64 [B].
        images: N.

    Returns:
        [N,H,W] in the dtype of `value`.
    """
    _, height, width = covered.shape
    rows = image_index[:, None].expand(-1, height * width)
    blank = value.new_zeros(images, height * width)
    painted = blank.scatter_reduce(0, rows, covered.flatten(1) * value[:, None], "amax")
    return painted.view(images, height, width)


def standardised(feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel with mean 0 and standard deviation 1 over all images and cells.

    Args:
        feature: [N,C,H,W].

    Returns:
        The map, and the mean and (unbiased) standard deviation that it had, [1,C,1,1].
    """
    cells = feature.shape[0] * feature.shape[2] * feature.shape[3]
    deviation, mean = torch.std_mean(feature, dim=(0, 2, 3), correction=min(1, cells - 1), keepdim=True)
    return (feature - mean) / (deviation + 1e-6), mean, deviation


def attention(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where and in which channels a map is strong.

    Args:
        feature: [N,C,H,W].
        temperature: of both softmaxes.

    Returns:
        H W softmax(mean_c |F| / T) [N,H,W], and C softmax(mean_hw |F| / T) [N,C].
    """
    _, channels, height, width = feature.shape
    strength = feature.abs()
    cells = (strength.mean(1).flatten(1) / temperature).softmax(1) * (height * width)
    return cells.view(-1, height, width), (strength.mean((2, 3)) / temperature).softmax(1) * channels
