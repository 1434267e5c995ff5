"""Prototype selection: joint matching pursuit in the two feature spaces."""

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._checks import check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


@torch.no_grad()
def matching_pursuit(
    student: Tensor,
    teacher: Tensor,
    count: Tensor,
    *,
    picks: int = 10,
    alpha: float = 10.0,
    repeat: bool = False,
    candidates: Tensor | None = None,
) -> Tensor:
    """Instances that explain best all instances of a class, in both spaces (paper, prototype generation).

    Greedy: with residuals R^a, R^b (at first the samples), candidate k explains sample n by u = a_k.R^a_n, v
        = b_k.R^b_n and
    the coupled coefficients w^a = ((1+alpha) u + alpha v) / (1+2 alpha), w^b likewise. The pick minimises
    sum_n |R^a_n - w^a a_k|^2 + |R^b_n - w^b b_k|^2 + alpha (w^a - w^b)^2, equally maximises sum_n (u w^a + v
    w^b), and is subtracted. Equal candidates: the first.

    Args:
        student: [G,n,Ds], L2-normalised rows, float32, float64, bfloat16 or float16; G independent problems.
        teacher: [G,n,Dt], likewise, row by row the same instances.
        count: int64 [G], rows of each problem that count; the rest is padding and may hold anything.
        picks: rounds M.
        alpha: weight of the agreement between the two spaces.
        candidates: bool [G,n], rows that may be picked (all rows still have to be explained); None: every
            row.
        repeat: let an instance be picked again, as the published code does.

    Returns:
        int64 [G,picks], row indices in the order of picking; -1 where there is nothing left to pick. No
        gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_tensor("student", student, "[G,n,Ds]")
    check_tensor("teacher", teacher, "[G,n,Dt]")
    check_tensor("count", count, "[G]", torch.int64)
    check_size("teacher", "G", teacher.shape[0], student.shape[0])
    check_size("teacher", "n", teacher.shape[1], student.shape[1])
    check_size("count", "G", count.shape[0], student.shape[0])
    check_same_device(student=student, teacher=teacher, count=count)
    if candidates is not None:
        check_tensor("candidates", candidates, "[G,n]", torch.bool)
        check_size("candidates", "G", candidates.shape[0], student.shape[0])
        check_size("candidates", "n", candidates.shape[1], student.shape[1])
        check_same_device(student=student, candidates=candidates)
    if picks < 0:
        raise ValueError(f"picks: expected 0 or more, got {picks}")
    if not alpha >= 0:
        raise ValueError(f"alpha: expected 0 or more, got {alpha}")
    if candidates is None:
        candidates = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    inputs = student, teacher, count, candidates
    if backend_for("matching_pursuit", student.device, ("cpu", "reference")) == "reference":
        return reference.matching_pursuit(*inputs, picks=picks, alpha=alpha, repeat=repeat)
    return _pursue(*inputs, picks, alpha, repeat)


def _fake(
    student: Tensor,
    teacher: Tensor,
    count: Tensor,
    candidates: Tensor,
    picks: int,
    alpha: float,
    repeat: bool,
) -> Tensor:
    return count.new_empty(student.shape[0], picks)


_pursue = define(
    "matching_pursuit(Tensor student, Tensor teacher, Tensor count, Tensor candidates, int picks, float alpha,"
    " bool repeat) -> Tensor",
    _fake,
)
