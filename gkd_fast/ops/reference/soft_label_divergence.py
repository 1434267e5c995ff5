"""Divergence of class logits, row by row."""

import torch.nn.functional as F
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype


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
    weights, *rows = counting_rows(student, teacher.detach(), weights.detach(), instance, temperature, positive)
    divergence = row_divergence(*rows, binary=binary)
    return (weights * divergence).sum() * temperature**2, (instance >= 0).sum().to(weights.dtype)


def counting_rows(
    student: Tensor, teacher: Tensor, weights: Tensor, instance: Tensor, temperature: float, positive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [S], and both logits [S,K] by the temperature, in the dtype of sums; 0 in rows without an instance."""
    dtype, none = accumulation_dtype(student.dtype, teacher.dtype), instance < 0
    weights = weights.to(dtype).masked_fill(none, 0.0)
    weights = weights.clamp(min=0) if positive else weights
    s, t = (logits.to(dtype).masked_fill(none[:, None], 0.0) / temperature for logits in (student, teacher))
    return weights, s, t


def row_divergence(student: Tensor, teacher: Tensor, *, binary: bool) -> Tensor:
    """mean_c KL(teacher || student) [S] of logits [S,K]: of a softmax, or of a sigmoid for each class."""
    if binary:
        # KL of Bernoulli distributions = p (t - s) + softplus(s) - softplus(t)
        return (teacher.sigmoid() * (teacher - student) + F.softplus(student) - F.softplus(teacher)).mean(1)
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).mean(1)
