"""DeFeat: distillation by decoupled features (Guo et al., CVPR 2021, arXiv 2103.14475)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast import ops
from gkd_fast.config_terms import TermConfig
from gkd_fast.methods.base import Setup, Step, near_zero_adapters


class DeFeat(nn.Module):
    """Features of objects and background apart, and class logits of positive and negative proposals apart.

    foreground  alpha_obj / (2 C N_obj) sum I (g(S) - T)^2           background  alpha_bg / (2 C N_bg) sum (1-I) (...)^2
    positive    beta_obj / K_obj sum KL(T || S) over positive proposals of the student; negative likewise with beta_bg

    Features: mean over the levels; a box belongs to the level of its size, I is its weight, and
    N_obj and N_bg sum I and 1 - [I > 0]. The published code divides by C as well, which its weights take for granted.
    g: 3x3 convolutions. The logits of a one-stage detector are not distilled, its proposals being all anchors.
    """

    def __init__(self, setup: Setup, config: TermConfig) -> None:
        super().__init__()
        self.adapters = near_zero_adapters(setup, setup.levels)
        self.stage = setup.stage
        self.foreground_weight = config.defeat_foreground_weight
        self.background_weight = config.defeat_background_weight
        self.positive_weight = config.defeat_positive_weight
        self.negative_weight = config.defeat_negative_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``foreground`` and ``background``; of a two-stage detector also ``positive`` and ``negative``."""
        adapted = [adapter(student) for adapter, student in zip(self.adapters, step.student, strict=True)]
        sums = ops.masked_imitation(
            adapted, step.teacher, step.truth.boxes, step.truth.image_index, step.weights, step.strides
        )
        channels = adapted[0].shape[1]
        foreground = sums.foreground / (2 * channels * sums.foreground_weight).clamp(min=1)
        background = sums.background / (2 * channels * sums.background_cells).clamp(min=1)
        terms = {
            "foreground": self.foreground_weight * foreground.mean(),
            "background": self.background_weight * background.mean(),
        }
        return terms | self._proposals(step) if self.stage == "two_stage" else terms

    def _proposals(self, step: Step) -> dict[str, Tensor]:
        soft, teacher = step.own.soft, step.teacher_network
        names = teacher.model.roi_heads.box_roi_pool.featmap_names
        pyramid = dict(zip(names, step.teacher, strict=False))
        logits, _ = teacher.classify(pyramid, soft["proposals"], soft["sizes"])
        positive, negative = decoupled_divergence(soft["proposal_logits"], logits, soft["is_object"])
        return {"positive": self.positive_weight * positive, "negative": self.negative_weight * negative}


def decoupled_divergence(student: Tensor, teacher: Tensor, is_object: Tensor) -> tuple[Tensor, Tensor]:
    """Mean KL(teacher || student) of the positive, and of the negative proposals; 0 where there are none.

    Args:
        student, teacher: logits [R,K+1].
        is_object: bool [R].
    """
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    positive = is_object.to(divergence.dtype)
    groups = torch.stack([positive, 1 - positive])
    return tuple(((groups * divergence).sum(1) / groups.sum(1).clamp(min=1)).unbind(0))
