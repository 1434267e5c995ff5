"""Soft labels: how far the student's class logits are from the teacher's, weighted row by row."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define, implement
from gkd_fast.ops.reference.soft_label_divergence import counting_rows


def soft_label_divergence(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    *,
    temperature: float,
    binary: bool = False,
    positive: bool = False,
) -> tuple[Tensor, Tensor]:
    """sum_i w_i T^2 mean_c KL(teacher || student) over the rows of an instance (paper, soft labels), and their number.

    Rows without an instance may hold anything.

    Args:
        student: class logits [S,K], float32, float64, bfloat16 or float16; K at least 1.
        teacher: likewise; the dtype may differ. No gradient flows into it.
        weights: w, floating [S]. No gradient flows into them.
        instance: int64 [S]; negative: the row counts for nothing.
        temperature: T, by which logits are divided.
        binary: a sigmoid for each class instead of a softmax.
        positive: negative weights count as 0.

    Returns:
        The sum and the number, float32 scalars (float64 if a logit is); the sum is differentiable in `student`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_tensor("student", student, "[S,K]")
    check_tensor("teacher", teacher, "[S,K]")
    check_tensor("weights", weights, "[S]")
    check_tensor("instance", instance, "[S]", torch.int64)
    for name, value in (("teacher", teacher), ("weights", weights), ("instance", instance)):
        check_size(name, "S", value.shape[0], student.shape[0])
    check_size("teacher", "K", teacher.shape[1], student.shape[1])
    check_same_device(student=student, teacher=teacher, weights=weights, instance=instance)
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if student.shape[1] < 1:
        raise ValueError("student: expected at least one class, got none")
    double = accumulation_dtype(student.dtype, teacher.dtype) == torch.float64
    backend = backend_for("soft_label_divergence", student.device, ("cpu",) if double else ("cpu", "triton"))
    if backend == "reference":
        return reference.soft_label_divergence(
            student, teacher, weights, instance, temperature=temperature, binary=binary, positive=positive
        )
    fixed = teacher.detach(), weights.detach(), instance, float(temperature), binary, positive
    return _Divergence.apply(student, *fixed, backend)


def _fake(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    temperature: float,
    binary: bool,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(student.dtype, teacher.dtype)
    return student.new_empty((), dtype=dtype), student.new_empty((), dtype=dtype)


def _fake_backward(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    temperature: float,
    binary: bool,
    positive: bool,
) -> Tensor:
    return student.new_empty(student.shape)


_ARGUMENTS = (
    "Tensor student, Tensor teacher, Tensor weights, Tensor instance, float temperature, bool binary, bool positive"
)
_forward = define(f"soft_label_divergence({_ARGUMENTS}) -> (Tensor, Tensor)", _fake)
_backward = define(f"soft_label_divergence_backward(Tensor gradient, {_ARGUMENTS}) -> Tensor", _fake_backward)


def _on_cpu(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    temperature: float,
    binary: bool,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    return reference.soft_label_divergence(
        student, teacher, weights, instance, temperature=temperature, binary=binary, positive=positive
    )


def _backward_on_cpu(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    temperature: float,
    binary: bool,
    positive: bool,
) -> Tensor:
    """gradient w T / K (q - p), of the probabilities of student and teacher."""
    weights, *rows = counting_rows(student, teacher, weights, instance, temperature, positive)
    q, p = (row.sigmoid() if binary else row.softmax(1) for row in rows)
    slope = gradient * weights * (temperature / student.shape[1])
    return (slope[:, None] * (q - p)).to(student.dtype)


# One pass over some logits: there is nothing that C++ would gain.
implement(_forward, _on_cpu, "CPU")
implement(_backward, _backward_on_cpu, "CPU")


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weights: Tensor,
        instance: Tensor,
        temperature: float,
        binary: bool,
        positive: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.options = backend, (temperature, binary, positive)
        ctx.save_for_backward(student, teacher, weights, instance)
        forward = implementation(_forward, backend, student.device)
        total, count = forward(student, teacher, weights, instance, *ctx.options)
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 8
        backward = implementation(_backward, ctx.backend, gradient.device)
        return backward(gradient, *ctx.saved_tensors, *ctx.options), *(None for _ in range(7))
