"""What cells outside of boxes count in imitation: how much they resemble a prototype, as both spaces agree in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_features, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define


@torch.no_grad()
def channel_means(features: Sequence[Tensor]) -> Tensor:
    """The mean of every channel of a pyramid over images and cells.

    Args:
        features: L maps [N,C,H_l,W_l], float32, float64, bfloat16 or float16, any memory format.

    Returns:
        [L,C], float32 (float64 if the maps are), summed in it or wider; 0 where there is no image. No gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_features("features", features)
    kernels = ("cpu",) if features[0].dtype == torch.float64 else ("cpu", "triton")
    backend = backend_for("channel_means", features[0].device, kernels)
    if backend == "reference":
        return reference.channel_means(features)
    return implementation(_channel_means, backend, features[0].device)(features)


@torch.no_grad()
def background_trust(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    student_means: Tensor,
    teacher_means: Tensor,
    *,
    filled: bool = False,
) -> Tensor:
    """What each cell counts as background: how much it resembles a prototype, as far as both spaces agree in it.

    r = max(0, c_T) max(0, 1 - |c_S - c_T|),   c = max_m cos(f - mu, p_m - mu)

    over all prototypes of the cell's level; mu is the mean of each channel. The cosines [cells,P] are never stored. A
    cell or prototype whose difference from mu is shorter than 1e-8 has no direction: its cosines are 0. Where a level
    has no prototype, r is 0. float16 and bfloat16 maps: on a GPU the unit prototypes are rounded to that dtype.

    Args:
        student: L maps [N,C_S,H_l,W_l], float32, float64, bfloat16 or float16, any memory format.
        teacher: L maps [N,C_T,H_l,W_l] of the same sizes; the dtype may differ.
        student_prototypes, teacher_prototypes: float32 or float64 [L,P,C_S], [L,P,C_T].
        student_means, teacher_means: mu [L,C_S], [L,C_T], likewise.
        filled: rows of zeros are no prototypes.

    Returns:
        r [sum of N*H_l*W_l] in 0..1, level after level, image after image, row after row; float32 (float64 if a map
        is). No gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    _check(student, teacher, student_prototypes, teacher_prototypes, student_means, teacher_means)
    inputs = (student_prototypes, teacher_prototypes, student_means, teacher_means)
    double = accumulation_dtype(student[0].dtype, teacher[0].dtype) == torch.float64
    backend = backend_for("background_trust", student[0].device, ("cpu",) if double else ("cpu", "triton"))
    if backend == "reference":
        return reference.background_trust(student, teacher, *inputs, filled=filled)
    return implementation(_trust, backend, student[0].device)(student, teacher, *inputs, filled)


def _fake_means(features: list[Tensor]) -> Tensor:
    shape = len(features), features[0].shape[1]
    return features[0].new_empty(shape, dtype=accumulation_dtype(features[0].dtype))


def _fake_trust(
    student: list[Tensor],
    teacher: list[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    student_means: Tensor,
    teacher_means: Tensor,
    filled: bool,
) -> Tensor:
    cells = sum(s.shape[0] * s.shape[2] * s.shape[3] for s in student)
    return student[0].new_empty(cells, dtype=accumulation_dtype(student[0].dtype, teacher[0].dtype))


_channel_means = define("channel_means(Tensor[] features) -> Tensor", _fake_means)
_trust = define(
    "background_trust(Tensor[] student, Tensor[] teacher, Tensor student_prototypes, Tensor teacher_prototypes,"
    " Tensor student_means, Tensor teacher_means, bool filled) -> Tensor",
    _fake_trust,
)


def _check(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    student_means: Tensor,
    teacher_means: Tensor,
) -> None:
    check_features("student", student)
    check_features("teacher", teacher)
    check_size("teacher", "levels", len(teacher), len(student))
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape != t.shape and t.shape != (expected := (s.shape[0], t.shape[1], *s.shape[2:])):
            raise ValueError(f"teacher[{level}]: expected shape {expected} as the student, got {tuple(t.shape)}")
    spaces = (
        ("student", student, student_prototypes, student_means),
        ("teacher", teacher, teacher_prototypes, teacher_means),
    )
    for name, maps, prototypes, means in spaces:
        if maps[0].shape[1] < 1:
            raise ValueError(f"{name}: expected at least one channel, got none")
        check_tensor(f"{name}_prototypes", prototypes, "[L,P,C]")
        check_tensor(f"{name}_means", means, "[L,C]")
        for kind, tensor in ((f"{name}_prototypes", prototypes), (f"{name}_means", means)):
            check_size(kind, "L", tensor.shape[0], len(maps))
            check_size(kind, "C", tensor.shape[-1], maps[0].shape[1])
    check_size("teacher_prototypes", "P", teacher_prototypes.shape[1], student_prototypes.shape[1])
    check_same_device(
        student=student[0],
        teacher=teacher[0],
        student_prototypes=student_prototypes,
        teacher_prototypes=teacher_prototypes,
        student_means=student_means,
        teacher_means=teacher_means,
    )
