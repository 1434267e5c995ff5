"""MGD: masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, aligned
from gkd_fast.methods.settings import MGDSettings
from gkd_fast.methods.units import channel_factor, pixel_factor


class MGD(nn.Module):
    """The teacher's map generated from a randomly masked map of the student.

    L = alpha / N sum_l sum (T_l - G_l(a_l(S_l) M_l))^2,   M_ij = 0 with probability lambda, else 1

    G = 3x3 convolution, ReLU, 3x3 convolution; a: 1x1 convolution where the channels differ.
    """

    parts = ("generation",)

    def __init__(self, setup: Setup, config: MGDSettings) -> None:
        super().__init__()
        self.align = aligned(setup, setup.own_levels)
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
            )
            for _, channels in setup.channels(setup.own_levels)
        )
        self.weight = setup.of(config.mgd_weight)
        self.masked = setup.of(config.mgd_masked)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term ``generation``."""
        levels = []
        for align, generate, student, teacher in zip(
            self.align, self.generators, step.student, step.teacher, strict=False
        ):
            images, _, height, width = student.shape
            kept = torch.rand(images, 1, height, width, device=student.device) >= self.masked
            square = (generate(align(student) * kept) - teacher).square().sum()
            levels.append(square * channel_factor(step.units, teacher) / images)
        return {"generation": self.weight * pixel_factor(step.units, step.images) * torch.stack(levels).sum()}
