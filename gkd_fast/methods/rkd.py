"""RKD: relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast.instances import Instances
from gkd_fast.methods.base import Setup, Step
from gkd_fast.methods.settings import RKDSettings
from gkd_fast.pyramids import pool


class RKD(nn.Module):
    """Distances and angles between the embeddings of a batch's ground-truth instances, level by level.

    distances: psi(i,j) = |x_i - x_j| / mu, mu = mean of the distances above 0
    angles:    psi(i,j,k) = cos of the angle at x_i between x_j and x_k
    L = mean over levels of: lambda_D mean_ij Huber(psi_S, psi_T) + lambda_A mean_ijk Huber(psi_S, psi_T)

    An embedding is the mean of the cells under the box, in each network's own channels.
    """

    parts = ("distance", "angle")

    def __init__(self, setup: Setup, config: RKDSettings) -> None:
        super().__init__()
        self.distance_weight = config.rkd_distance_weight
        self.angle_weight = config.rkd_angle_weight
        self.instances = config.rkd_instances

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``distance`` and ``angle``."""
        truth = step.truth
        most = min(len(truth.boxes), self.instances)
        real = truth.labels >= 0
        count = real.sum().clamp(max=most)
        # Evenly among those that are no padding, which stand behind them in this order.
        order = (~real).to(torch.uint8).argsort(stable=True)
        place = torch.arange(most, device=real.device)
        chosen = order[place * real.sum() // count.clamp(min=1) % max(len(order), 1)]
        instances = Instances(truth.boxes[chosen], truth.image_index[chosen], truth.labels[chosen])
        counts = (place < count).to(step.student[0].dtype)
        student = pool(step.student, instances, step.strides)
        teacher = pool(step.teacher_own, instances, step.teacher_strides)
        pairs = counts[:, None] * counts
        distances = relative_distances(student, pairs), relative_distances(teacher, pairs)
        return {
            "distance": self.distance_weight * _mean_huber(*distances, pairs),
            "angle": self.angle_weight * _mean_huber(angles(student), angles(teacher), pairs[:, :, None] * counts),
        }


def relative_distances(embeddings: Tensor, pairs: Tensor | None = None) -> Tensor:
    """|x_i - x_j| over the mean of those above 0: [L,B,C] -> [L,B,B]; pairs [B,B]: 1 for those that count."""
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    if pairs is not None:
        distances = distances * pairs
    count = (distances > 0).sum((1, 2), keepdim=True).clamp(min=1)
    mean = distances.sum((1, 2), keepdim=True) / count
    return distances / mean.masked_fill(mean == 0, 1.0)


def angles(embeddings: Tensor) -> Tensor:
    """cos of the angle at x_i between x_j and x_k, 0 where one of them is x_i: [L,B,C] -> [L,B,B,B]."""
    arms = embeddings[:, None] - embeddings[:, :, None]
    length = arms.norm(dim=-1, keepdim=True)
    unit = arms / length.masked_fill(length < 1e-8, torch.inf)
    return unit @ unit.transpose(-1, -2)


def _mean_huber(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The mean over the levels of relations [L,...] and over those that count, of which `weight` [...] is 1."""
    loss = F.smooth_l1_loss(student, teacher, reduction="none") * weight
    return loss.sum() / (len(student) * weight.sum()).clamp(min=1)
