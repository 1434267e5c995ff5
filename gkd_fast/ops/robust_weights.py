"""How far both networks agree in an embedding, by the prototypes of its class."""

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define, implement


@torch.no_grad()
def robust_weights(
    student: Tensor,
    teacher: Tensor,
    level: Tensor,
    labels: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    class_offsets: Tensor,
    *,
    most: int,
    instance: Tensor | None = None,
) -> Tensor:
    """omega = 1 - |max_m cos(student, student_prototype_m) - max_m cos(teacher, teacher_prototype_m)|.

    The maxima are over the prototypes of an embedding's class on its level (paper, robust distilling); a vector shorter
    than 1e-8 has no direction, its cosines are 0. `gkd_fast.ops.pairwise_discrepancy` has the same of embeddings on
    every level.

    Args:
        student, teacher: embeddings [S,C_S], [S,C_T], float32, float64, bfloat16 or float16.
        level: int64 [S], in [0,L).
        labels: int64 [B], class in [0,K); of a negative one the weight means nothing.
        student_prototypes, teacher_prototypes: [L,P,C_S], [L,P,C_T].
        class_offsets: int64 [K+1]; the prototypes of class c are rows offsets[c]:offsets[c+1] on every level.
        most: no class has more prototypes.
        instance: int64 [S], whose label an embedding has, in [0,B); of a negative one the weight means nothing. None:
            its own, so that B = S.

    Returns:
        [S], float32 (float64 if an embedding is); 1 for a class without prototypes. No gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    for name, value, shape in (("student", student, "[S,C]"), ("teacher", teacher, "[S,C]")):
        check_tensor(name, value, shape)
    check_tensor("student_prototypes", student_prototypes, "[L,P,C]")
    check_tensor("teacher_prototypes", teacher_prototypes, "[L,P,C]")
    check_tensor("labels", labels, "[B]", torch.int64)
    owner = ("labels", labels) if instance is None else ("instance", instance)
    for name, value in (("level", level), owner):
        check_tensor(name, value, "[S]", torch.int64)
        check_size(name, "S", value.shape[0], student.shape[0])
    check_tensor("class_offsets", class_offsets, "[K+1]", torch.int64)
    check_size("teacher", "S", teacher.shape[0], student.shape[0])
    check_size("student_prototypes", "C", student_prototypes.shape[2], student.shape[1])
    check_size("teacher_prototypes", "C", teacher_prototypes.shape[2], teacher.shape[1])
    check_size("teacher_prototypes", "L", teacher_prototypes.shape[0], student_prototypes.shape[0])
    check_size("teacher_prototypes", "P", teacher_prototypes.shape[1], student_prototypes.shape[1])
    check_same_device(student=student, teacher=teacher, level=level, labels=labels, class_offsets=class_offsets)
    check_same_device(student=student, prototypes=student_prototypes, teacher_prototypes=teacher_prototypes)
    inputs = student, teacher, level, labels, instance, student_prototypes, teacher_prototypes, class_offsets, most
    double = accumulation_dtype(student.dtype, teacher.dtype) == torch.float64
    backend = backend_for("robust_weights", student.device, ("cpu",) if double else ("cpu", "triton"))
    if backend == "reference":
        return reference.robust_weights(*inputs)
    return implementation(_robust_weights, backend, student.device)(*inputs)


def _fake(
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
    return student.new_empty(student.shape[0], dtype=accumulation_dtype(student.dtype, teacher.dtype))


_robust_weights = define(
    "robust_weights(Tensor student, Tensor teacher, Tensor level, Tensor labels, Tensor? instance,"
    " Tensor student_prototypes, Tensor teacher_prototypes, Tensor class_offsets, int most) -> Tensor",
    _fake,
)
# Some gathered rows: there is nothing that C++ would gain.
implement(_robust_weights, reference.robust_weights, "CPU")
