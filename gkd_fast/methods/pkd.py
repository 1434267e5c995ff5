"""PKD: distillation by Pearson correlation (Cao et al., NeurIPS 2022, arXiv 2207.02039)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, aligned, standardised
from gkd_fast.methods.settings import PKDSettings

_LEVELS = 4  # the published configurations of both kinds of detectors leave the fifth level out


class PKD(nn.Module):
    """Imitation of maps whose channels have mean 0 and deviation 1 over the batch, on the first four levels.

    L = weight sum_l 1/2 mean (S^ - T^)^2,   X^ = (X - mean_c) / std_c,   c a channel over the batch,

    which is, with n cells in the batch, (n - 1) / n (1 - r), r the correlation of the channels (Pearson's).

    A 1x1 convolution precedes where the channels differ.
    """

    parts = ("correlation",)

    def __init__(self, setup: Setup, config: PKDSettings) -> None:
        super().__init__()
        self.align = aligned(setup, min(_LEVELS, setup.levels))
        self.weight = setup.of(config.pkd_weight)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term ``correlation``."""
        levels = [
            F.mse_loss(standardised(align(student))[0], standardised(teacher)[0]) / 2
            for align, student, teacher in zip(self.align, step.student, step.teacher, strict=False)
        ]
        return {"correlation": self.weight * torch.stack(levels).sum()}
