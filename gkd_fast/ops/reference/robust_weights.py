"""Robust weights of rows, whose prototypes are gathered."""

import torch
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype
from gkd_fast.ops.reference.prototype_projection import unit


def robust_weights(
    student: Tensor,
    teacher: Tensor,
    level: Tensor,
    labels: Tensor,
    instance: Tensor | None,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    class_offsets: Tensor,
    most: int,
) -> Tensor:
    """omega [S]; see `gkd_fast.ops.robust_weights`."""
    if instance is not None:
        labels = labels[instance.clamp(min=0)]
    first, last = class_offsets.unfold(0, 2, 1)[labels.clamp(min=0)].unbind(1)
    index = first[:, None] + torch.arange(most, device=labels.device)
    outside = index >= last[:, None]
    per_level = student_prototypes.shape[1]
    row = index.clamp_(max=per_level - 1) + level[:, None] * per_level

    def nearest(embedding: Tensor, prototypes: Tensor) -> Tensor:
        own = unit(prototypes.flatten(0, 1)[row].to(embedding.dtype))
        cosine = (own * unit(embedding)[:, None]).sum(-1)
        return cosine.masked_fill_(outside, -1).amax(1)

    dtype = accumulation_dtype(student.dtype, teacher.dtype)
    discrepancy = nearest(student.to(dtype), student_prototypes) - nearest(teacher.to(dtype), teacher_prototypes)
    return (1 - discrepancy.abs()).masked_fill_(first >= last, 1.0)
