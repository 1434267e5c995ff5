"""Divergence of class logits, row by row."""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_label_divergence(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    *,
    temperature: float,
    binary: bool,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    """Weighted sum and number of rows; see `gkd_fast.ops.soft_label_divergence`."""
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    real = instance >= 0
    weights = weights.detach().to(dtype).masked_fill(~real, 0.0)
    if positive:
        weights = weights.clamp(min=0)
    rows = (logits.to(dtype).masked_fill(~real[:, None], 0.0) / temperature for logits in (student, teacher.detach()))
    divergence = row_divergence(*rows, binary=binary)
    return (weights * divergence).sum() * temperature**2, real.sum().to(dtype)


def row_divergence(student: Tensor, teacher: Tensor, *, binary: bool) -> Tensor:
    """mean_c KL(teacher || student) [S] of logits [S,K]: of a softmax, or of a sigmoid for each class."""
    if binary:
        # KL of Bernoulli distributions = p (t - s) + softplus(s) - softplus(t)
        return (teacher.sigmoid() * (teacher - student) + F.softplus(student) - F.softplus(teacher)).mean(1)
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).mean(1)
