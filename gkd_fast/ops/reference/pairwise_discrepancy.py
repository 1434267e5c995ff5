"""Robust weights and the discrepancy of both networks' cosines, with the matrices [L,B,P] in full."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.ops.reference.prototype_projection import prototype_projection


def pairwise_discrepancy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss [L] and omega [L,B]; see `gkd_fast.ops.pairwise_discrepancy`."""
    same_class = _same_class(labels, class_offsets, student_prototypes.shape[1])
    padding = labels < 0
    participates = same_class.any(dim=1) & ~padding

    # Rows that take no part may hold anything, NaN too: replaced before they meet any arithmetic.
    student_cosine = prototype_projection(student.masked_fill(~participates[:, None], 0.0), student_prototypes)
    teacher_cosine = prototype_projection(teacher.masked_fill(~participates[:, None], 0.0), teacher_prototypes)
    dtype = torch.promote_types(student_cosine.dtype, teacher_cosine.dtype)
    student_cosine, teacher_cosine = student_cosine.to(dtype), teacher_cosine.to(dtype)

    gap = _best(student_cosine, same_class) - _best(teacher_cosine, same_class)
    omega = (1.0 - gap.abs()).where(participates, 1.0).masked_fill(padding, 0.0)

    weight = omega[:, :, None]
    terms = F.smooth_l1_loss(weight * student_cosine, weight * teacher_cosine, reduction="none")
    pairs = (participates.sum() * student_cosine.shape[2]).clamp(min=1)
    loss = (terms * participates[:, None]).sum(dim=(1, 2)) / pairs
    return loss, omega


def _same_class(labels: Tensor, class_offsets: Tensor, prototypes: int) -> Tensor:
    """[B,P]: offsets[label] <= p < offsets[label + 1]; labels outside [0,K) have no prototypes."""
    classes = class_offsets.shape[0] - 1
    index = torch.arange(prototypes, device=labels.device)
    known = (labels >= 0) & (labels < classes)
    inside = labels.clamp(0, max(classes - 1, 0))
    first, past = class_offsets[inside], class_offsets[(inside + 1).clamp(max=classes)]
    return known[:, None] & (index >= first[:, None]) & (index < past[:, None])


def _best(cosine: Tensor, same_class: Tensor) -> Tensor:
    """Largest same-class cosine [L,B], detached; -2, below every cosine, where there is none."""
    floor = cosine.new_full((*cosine.shape[:2], 1), -2.0)
    return torch.cat([cosine.detach().masked_fill(~same_class, -2.0), floor], dim=2).amax(dim=2)
