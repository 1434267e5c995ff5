"""CWD: channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, aligned
from gkd_fast.methods.settings import CWDSettings


class CWD(nn.Module):
    """Each channel of a map as a distribution over its cells.

    phi(F)_ci = softmax_i(F_ci / tau);   L = weight tau^2 / (N C) sum_l sum_nc KL(phi(T) || phi(S))

    A 1x1 convolution precedes where the channels differ.
    """

    parts = ("channels",)

    def __init__(self, setup: Setup, config: CWDSettings) -> None:
        super().__init__()
        self.align = aligned(setup, setup.levels)
        self.weight = config.cwd_weight
        self.temperature = config.cwd_temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term ``channels``."""
        levels = [
            self._divergence(align(student), teacher)
            for align, student, teacher in zip(self.align, step.student, step.teacher, strict=True)
        ]
        return {"channels": self.weight * self.temperature**2 * torch.stack(levels).sum()}

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = ((feature.flatten(2) / self.temperature).log_softmax(2) for feature in (student, teacher))
        return (teacher.exp() * (teacher - student)).sum(2).mean()
