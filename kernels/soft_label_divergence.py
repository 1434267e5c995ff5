"""Divergence of class logits: a program takes some rows and walks over their classes; no probability is stored."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import cdiv, on_device_of, ready
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised


@triton.jit
def log_normaliser(logits_ptr, row, counts, classes, scale, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """log sum_c exp(scale logits) of rows; of those that do not count, of zeros."""
    largest = tl.full((BLOCK_R,), -float("inf"), tl.float32)
    for first in range(0, classes, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = counts[:, None] & (k < classes)[None, :]
        x = tl.load(logits_ptr + row[:, None] * classes + k[None, :], mask=inside, other=0.0).to(tl.float32) * scale
        largest = tl.maximum(largest, tl.max(tl.where((k < classes)[None, :], x, -float("inf")), 1))
    total = tl.zeros((BLOCK_R,), tl.float32)
    for first in range(0, classes, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = counts[:, None] & (k < classes)[None, :]
        x = tl.load(logits_ptr + row[:, None] * classes + k[None, :], mask=inside, other=0.0).to(tl.float32) * scale
        total += tl.sum(tl.where((k < classes)[None, :], tl.exp(x - largest[:, None]), 0.0), 1)
    return largest + tl.log(total)


@triton.jit
def softplus(x):
    """log(1 + exp(x))"""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def row_weights(weights_ptr, instance_ptr, row, rows, positive):
    """What rows count, and which ones do."""
    counts = tl.load(instance_ptr + row, mask=row < rows, other=-1) >= 0
    weight = tl.load(weights_ptr + row, mask=counts, other=0.0)
    return tl.where((positive != 0) & (weight < 0.0), 0.0, weight), counts


@unspecialised
def divergence_kernel(
    student_ptr,
    teacher_ptr,
    weights_ptr,
    instance_ptr,
    sums_ptr,
    rows,
    classes,
    positive,
    scale,
    BINARY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sums [2,programs]: of the weighted divergences, summed over classes, and of the rows that count."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    weight, counts = row_weights(weights_ptr, instance_ptr, row, rows, positive)
    divergence = tl.zeros((BLOCK_R,), tl.float32)
    if not BINARY:
        own = log_normaliser(student_ptr, row, counts, classes, scale, BLOCK_R, BLOCK_K)
        other = log_normaliser(teacher_ptr, row, counts, classes, scale, BLOCK_R, BLOCK_K)
    for first in range(0, classes, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = counts[:, None] & (k < classes)[None, :]
        place = row[:, None] * classes + k[None, :]
        s = tl.load(student_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale
        t = tl.load(teacher_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale
        if BINARY:
            term = (t - s) / (1.0 + tl.exp(-t)) + softplus(s) - softplus(t)
        else:
            s, t = s - own[:, None], t - other[:, None]
            term = tl.exp(t) * (t - s)
        divergence += tl.sum(tl.where(inside, term, 0.0), 1)
    program = tl.program_id(0)
    tl.store(sums_ptr + program, tl.sum(tl.where(counts, weight * divergence, 0.0), 0))
    tl.store(sums_ptr + tl.num_programs(0) + program, tl.sum(counts.to(tl.float32), 0))


@unspecialised
def divergence_sum_kernel(sums_ptr, total_ptr, count_ptr, programs, factor, BLOCK: tl.constexpr):
    """factor times the sum of the first row of sums [2,programs], and the sum of the second."""
    kind = tl.program_id(0)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, programs, BLOCK):
        i = first + tl.arange(0, BLOCK)
        sums += tl.load(sums_ptr + kind * programs + i, mask=i < programs, other=0.0)
    total = tl.sum(sums, 0)
    tl.store(tl.where(kind == 0, total_ptr, count_ptr), tl.where(kind == 0, factor * total, total))


@unspecialised
def divergence_backward_kernel(
    gradient_ptr,
    student_ptr,
    teacher_ptr,
    weights_ptr,
    instance_ptr,
    result_ptr,
    rows,
    classes,
    positive,
    scale,
    factor,
    BINARY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """result [S,K] = gradient factor w (q - p), of the probabilities of student and teacher."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    weight, counts = row_weights(weights_ptr, instance_ptr, row, rows, positive)
    slope = tl.load(gradient_ptr) * factor * weight
    if not BINARY:
        own = log_normaliser(student_ptr, row, counts, classes, scale, BLOCK_R, BLOCK_K)
        other = log_normaliser(teacher_ptr, row, counts, classes, scale, BLOCK_R, BLOCK_K)
    for first in range(0, classes, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = counts[:, None] & (k < classes)[None, :]
        place = row[:, None] * classes + k[None, :]
        s = tl.load(student_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale
        t = tl.load(teacher_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale
        if BINARY:
            difference = 1.0 / (1.0 + tl.exp(-s)) - 1.0 / (1.0 + tl.exp(-t))
        else:
            difference = tl.exp(s - own[:, None]) - tl.exp(t - other[:, None])
        value = tl.where(inside, slope[:, None] * difference, 0.0)
        written = (row < rows)[:, None] & (k < classes)[None, :]
        tl.store(result_ptr + place, value.to(result_ptr.dtype.element_ty), mask=written)


SUM = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}


def _configuration(binary: bool) -> dict[str, Any]:
    return {"BINARY": binary, "BLOCK_R": 8 if binary else 4, "BLOCK_K": 128, "num_warps": 4, "num_stages": 1}


def _logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """In one dtype."""
    dtype = student.dtype if student.dtype == teacher.dtype else torch.float32
    return ready(student.to(dtype)), ready(teacher.to(dtype))


def soft_label_divergence(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    temperature: float,
    binary: bool,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    """The weighted sum and the number of rows, float32; see `gkd_fast.ops.soft_label_divergence`."""
    rows, classes = student.shape
    total, count = (student.new_empty((), dtype=torch.float32) for _ in range(2))
    if not rows:
        return total.zero_(), count.zero_()
    configuration = _configuration(binary)
    programs = cdiv(rows, configuration["BLOCK_R"])
    sums = total.new_empty((2, programs))
    with on_device_of(total):
        tensors = *_logits(student, teacher), ready(weights.float()), ready(instance), sums
        divergence_kernel[(programs,)](*tensors, rows, classes, int(positive), 1.0 / temperature, **configuration)
        divergence_sum_kernel[(2,)](sums, total, count, programs, temperature**2 / classes, **SUM)
    return total, count


def soft_label_divergence_backward(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    instance: Tensor,
    temperature: float,
    binary: bool,
    positive: bool,
) -> Tensor:
    """The student's gradient, in its dtype."""
    rows, classes = student.shape
    configuration = _configuration(binary)
    s, t = _logits(student, teacher)
    result = torch.empty_like(s)
    if rows:
        with on_device_of(result):
            divergence_backward_kernel[(cdiv(rows, configuration["BLOCK_R"]),)](
                ready(gradient),
                s,
                t,
                ready(weights.float()),
                ready(instance),
                result,
                rows,
                classes,
                int(positive),
                1.0 / temperature,
                temperature / classes,
                **configuration,
            )
    return result.to(student.dtype)


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""

    def types(fn: triton.JITFunction, kind: str) -> dict[str, str]:
        named = {"instance_ptr": "*i64"} | dict.fromkeys(("scale", "factor"), "fp32")
        named |= dict.fromkeys(("student_ptr", "teacher_ptr", "result_ptr"), f"*{kind}")
        return {name: named.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in fn.arg_names}

    forms = [(kind, _configuration(binary)) for kind in TYPES.values() for binary in (False, True)]
    specs = {
        fn.__name__: KernelSpec(fn, [launch(fn, types(fn, kind), configuration) for kind, configuration in forms])
        for fn in (divergence_kernel, divergence_backward_kernel)
    }
    adding = [launch(divergence_sum_kernel, types(divergence_sum_kernel, "fp32"), SUM)]
    return specs | {"divergence_sum_kernel": KernelSpec(divergence_sum_kernel, adding)}


KERNELS = configurations()
