"""What a training step offers to a distillation method, and what several methods share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast.detectors import DetectorAdapter, Instances, StudentPass


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The networks' shapes, known before training.

    Attributes:
        stage: ``two_stage`` or ``one_stage``.
        student_channels, teacher_channels: of the pyramids.
        levels: of both pyramids.
    """

    stage: str
    student_channels: int
    teacher_channels: int
    levels: int

    @property
    def own_levels(self) -> int:
        """Levels with content of their own: a two-stage pyramid's last level repeats cells of the one before."""
        return self.levels - 1 if self.stage == "two_stage" else self.levels

    def of(self, pair: tuple[float, float]) -> float:
        """The two-stage or the one-stage value of a setting."""
        return pair[1] if self.stage == "one_stage" else pair[0]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step offers.

    Attributes:
        student: L raw maps [N,C_S,H_l,W_l], float32, with gradient.
        teacher: L maps [N,C_T,H_l,W_l], float32, without gradient.
        strides: of the L levels, in pixels.
        truth: B ground-truth instances.
        weights: [L,B], what each of them counts in a mask: 1, or its robust weight.
        images: the padded batch.
        own: the student's training pass.
        student_network, teacher_network: both detectors.
    """

    student: list[Tensor]
    teacher: list[Tensor]
    strides: list[int]
    truth: Instances
    weights: Tensor
    images: ImageList
    own: StudentPass
    student_network: DetectorAdapter
    teacher_network: DetectorAdapter


def aligned(setup: Setup, levels: int) -> nn.ModuleList:
    """For each level a 1x1 convolution to the teacher's channels, or nothing where the channels are equal."""
    if setup.student_channels == setup.teacher_channels:
        return nn.ModuleList(nn.Identity() for _ in range(levels))
    return nn.ModuleList(nn.Conv2d(setup.student_channels, setup.teacher_channels, 1) for _ in range(levels))


def near_zero_adapters(setup: Setup, levels: int) -> nn.ModuleList:
    """For each level a 3x3 convolution to the teacher's channels that starts near 0 (normal, 1e-4, cut at 2)."""
    adapters = [nn.Conv2d(setup.student_channels, setup.teacher_channels, 3, padding=1) for _ in range(levels)]
    for adapter in adapters:
        nn.init.trunc_normal_(adapter.weight, std=1e-4, a=-2e-4, b=2e-4)
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
