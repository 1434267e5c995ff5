"""Global loss and robust weights: how differently the two networks see an instance against the prototypes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define, implement


def pairwise_discrepancy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Discrepancy of student and teacher in their cosines with the prototypes (paper, robust distilling).

    omega[l,i] = 1 - |max_m cos(student_i, student_prototype_m) - max_m cos(teacher_i, teacher_prototype_m)|,
    the maxima independent of each other and over the prototypes of the instance's class; it carries no
    gradient. loss[l] = mean of smooth_l1(omega cos_student, omega cos_teacher), beta 1, over the instances
    that take part and all prototypes of the level; 0 where no instance takes part.

    An instance whose class has no prototypes has omega 1 and takes no part in the loss. A negative label
    marks padding: omega 0, no part in the loss.

    Args:
        student: embeddings [L,B,Cs], float32, float64, bfloat16 or float16.
        teacher: embeddings [L,B,Ct], likewise; dtypes may differ.
        student_prototypes: [L,P,Cs], without gradient.
        teacher_prototypes: [L,P,Ct], without gradient, row by row the same instances.
        labels: int64 [B], class in [0,K), or negative.
        class_offsets: int64 [K+1]; the prototypes of class c are rows offsets[c]:offsets[c+1] on every level.

    Returns:
        loss [L] and omega [L,B], float32 (float64 if an embedding is float64). The loss is differentiable in
        `student` and `teacher`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; prototypes that
            require a gradient.
    """
    _check(student, teacher, student_prototypes, teacher_prototypes, labels, class_offsets)
    inputs = (student, teacher, student_prototypes, teacher_prototypes, labels, class_offsets)
    double = accumulation_dtype(*(t.dtype for t in inputs[:4])) == torch.float64
    backend = backend_for("pairwise_discrepancy", student.device, ("cpu",) if double else ("cpu", "triton"))
    if backend == "reference":
        return reference.pairwise_discrepancy(*inputs)
    return _Discrepancy.apply(*inputs, torch.is_grad_enabled(), backend)


def _fake(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
    need_student: bool,
    need_teacher: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    dtype = accumulation_dtype(*(t.dtype for t in (student, teacher, student_prototypes, teacher_prototypes)))
    rows, prototypes = student.shape[:2], student_prototypes.shape[:2]
    state: tuple[tuple[int, ...], ...]
    if student.is_cuda:
        pairs = (*rows, -(-prototypes[1] // 8) * 8) if need_student or need_teacher else (0,)
        state = rows, rows, prototypes, prototypes, rows[:1], pairs
    else:
        state = student.shape if need_student else (0,), teacher.shape if need_teacher else (0,)
    loss, omega = (student.new_empty(shape, dtype=dtype) for shape in (rows[:1], rows))
    return loss, omega, [student.new_empty(shape, dtype=dtype) for shape in state]


def _fake_backward(
    loss_gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    omega: Tensor,
    state: list[Tensor],
    need_student: bool,
    need_teacher: bool,
) -> tuple[Tensor, Tensor]:
    return (
        student.new_empty(student.shape if need_student else (0,)),
        teacher.new_empty(teacher.shape if need_teacher else (0,)),
    )


_VECTORS = "Tensor student, Tensor teacher, Tensor student_prototypes, Tensor teacher_prototypes"
# The state is the kernel's own affair. On the CPU it is the gradient per unit gradient of each level's loss, made
# beside the loss; on a GPU, lengths, weights, and the slope of every pair's term.
_forward = define(
    f"pairwise_discrepancy({_VECTORS}, Tensor labels, Tensor class_offsets, bool need_student, bool need_teacher)"
    " -> (Tensor loss, Tensor omega, Tensor[] state)",
    _fake,
)
_backward = define(
    f"pairwise_discrepancy_backward(Tensor loss_gradient, {_VECTORS}, Tensor omega, Tensor[] state,"
    " bool need_student, bool need_teacher) -> (Tensor, Tensor)",
    _fake_backward,
)


def _scale_state(
    loss_gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    omega: Tensor,
    state: list[Tensor],
    need_student: bool,
    need_teacher: bool,
) -> tuple[Tensor, Tensor]:
    student_gradient, teacher_gradient = (
        (loss_gradient[:, None, None] * unit).to(embedding.dtype) if needed else embedding.new_empty(0)
        for unit, embedding, needed in zip(state, (student, teacher), (need_student, need_teacher), strict=True)
    )
    return student_gradient, teacher_gradient


implement(_backward, _scale_state, "CPU")


class _Discrepancy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        student_prototypes: Tensor,
        teacher_prototypes: Tensor,
        labels: Tensor,
        class_offsets: Tensor,
        grad_enabled: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.backend = backend
        vectors = student, teacher, student_prototypes, teacher_prototypes
        need = tuple(grad_enabled and needed for needed in ctx.needs_input_grad[:2])
        forward = implementation(_forward, backend, student.device)
        loss, omega, state = forward(*vectors, labels, class_offsets, *need)
        ctx.save_for_backward(*vectors, omega, *state)
        ctx.mark_non_differentiable(omega)
        ctx.set_materialize_grads(False)
        return loss, omega

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if loss_gradient is None:
            return (None,) * 8
        need = ctx.needs_input_grad[:2]
        inputs, state = list(ctx.saved_tensors[:5]), list(ctx.saved_tensors[5:])
        backward = implementation(_backward, ctx.backend, loss_gradient.device)
        gradients = backward(loss_gradient, *inputs, state, *need)
        return *(g if needed else None for g, needed in zip(gradients, need, strict=True)), *(None for _ in range(6))


def _check(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
) -> None:
    check_tensor("student", student, "[L,B,Cs]")
    check_tensor("teacher", teacher, "[L,B,Ct]")
    check_tensor("student_prototypes", student_prototypes, "[L,P,Cs]")
    check_tensor("teacher_prototypes", teacher_prototypes, "[L,P,Ct]")
    check_tensor("labels", labels, "[B]", torch.int64)
    check_tensor("class_offsets", class_offsets, "[K+1]", torch.int64)
    levels, instances, student_channels = student.shape
    check_size("teacher", "L", teacher.shape[0], levels)
    check_size("teacher", "B", teacher.shape[1], instances)
    check_size("student_prototypes", "L", student_prototypes.shape[0], levels)
    check_size("student_prototypes", "Cs", student_prototypes.shape[2], student_channels)
    check_size("teacher_prototypes", "L", teacher_prototypes.shape[0], levels)
    check_size("teacher_prototypes", "Ct", teacher_prototypes.shape[2], teacher.shape[2])
    check_size("teacher_prototypes", "P", teacher_prototypes.shape[1], student_prototypes.shape[1])
    check_size("labels", "B", labels.shape[0], instances)
    if class_offsets.shape[0] < 1:
        raise ValueError("class_offsets: expected K + 1 offsets, got none")
    check_same_device(
        student=student,
        teacher=teacher,
        student_prototypes=student_prototypes,
        teacher_prototypes=teacher_prototypes,
        labels=labels,
        class_offsets=class_offsets,
    )
    for name, prototypes in (
        ("student_prototypes", student_prototypes),
        ("teacher_prototypes", teacher_prototypes),
    ):
        if prototypes.requires_grad:
            raise ValueError(f"{name}: expected prototypes without gradient (detach them), got requires_grad=True")
