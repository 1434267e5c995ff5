"""DeFeat: distillation by decoupled features (Guo et al., CVPR 2021, arXiv 2103.14475)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, near_zero_adapters
from gkd_fast.methods.settings import DeFeatSettings
from gkd_fast.pyramids import imitation


class DeFeat(nn.Module):
    """Features of objects and background apart, and class logits of positive and negative proposals apart.

    foreground  alpha_obj / (2 C N_obj) sum I (g(S) - T)^2           background  alpha_bg / (2 C N_bg) sum (1-I) (...)^2
    positive    beta_obj / K_obj sum KL(T || S) over positive proposals of the student; negative likewise with beta_bg

    Features: mean over the levels; a box belongs to the level of its size, I is its weight, and
    N_obj and N_bg sum I and 1 - [I > 0]. The published code divides by C as well, which its weights take for granted.
    g: 3x3 convolutions. Logits are distilled where a two-stage detector shows its proposals; those of one-stage
    detectors are not, their proposals being all anchors.
    """

    channels: Tensor

    def __init__(self, setup: Setup, config: DeFeatSettings) -> None:
        super().__init__()
        self.adapters = near_zero_adapters(setup, setup.levels)
        self.register_buffer("channels", torch.tensor(setup.teacher_channels), persistent=False)
        self.proposals = "proposals" in setup.offered
        self.parts = ("foreground", "background", *(("positive", "negative") if self.proposals else ()))
        self.foreground_weight = config.defeat_foreground_weight
        self.background_weight = config.defeat_background_weight
        self.positive_weight = config.defeat_positive_weight
        self.negative_weight = config.defeat_negative_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``foreground`` and ``background``; of a two-stage detector also ``positive`` and ``negative``."""
        adapted = [adapter(student) for adapter, student in zip(self.adapters, step.student, strict=True)]
        squares, weights = imitation(adapted, step.teacher, step.truth, step.weights, step.strides)
        foreground, background = (squares / (2 * self.channels * weights).clamp(min=1)).mean(1).unbind()
        terms = {"foreground": self.foreground_weight * foreground, "background": self.background_weight * background}
        return terms | self._proposals(step) if self.proposals else terms

    def _proposals(self, step: Step) -> dict[str, Tensor]:
        soft, teacher = step.detection.own.soft, step.detection.teacher
        samples = soft["samples"]
        logits, _ = teacher.classify(step.detection.teacher_pyramid(step.teacher_own), samples.boxes, soft["size"])
        positive, negative = decoupled_divergence(soft["logits"], logits, samples.matched.flatten())
        return {"positive": self.positive_weight * positive, "negative": self.negative_weight * negative}


def decoupled_divergence(student: Tensor, teacher: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Mean KL(teacher || student) of the positive, and of the negative proposals; 0 where there are none.

    Args:
        student, teacher: logits [R,K+1].
        matched: int64 [R], 0 or more: positive, -1: negative, else no proposal.
    """
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    groups = torch.stack([matched >= 0, matched == -1]).to(divergence.dtype)
    positive, negative = ((groups * divergence).sum(1) / groups.sum(1).clamp(min=1)).unbind(0)
    return positive, negative
