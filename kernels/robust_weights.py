"""The weight of every instance, from its class's own prototypes: one program an instance and level, or a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import VECTOR, cdiv, on_device_of, ready
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised
from gkd_fast.kernels.unit_rows import inverse_of, store_inverse_lengths


@triton.jit
def class_range(labels_ptr, offsets_ptr, instance, inside, classes, prototypes):
    """Prototypes [first, past) of an instance's class, and its label; empty for a label outside [0,K)."""
    label = tl.load(labels_ptr + instance, mask=inside, other=-1)
    known = (label >= 0) & (label < classes)
    first = tl.load(offsets_ptr + label, mask=known, other=0)
    past = tl.load(offsets_ptr + label + 1, mask=known, other=0)
    return tl.maximum(first, 0).to(tl.int32), tl.minimum(past, prototypes).to(tl.int32), label


@triton.jit
def best_cosine(vector_ptr, prototypes_ptr, first, past, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Largest cosine of one vector with prototypes [first, past), and 1 / its length; NaN if it is not finite."""
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(vector_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        squares += x * x
    square = tl.sum(squares, 0)
    inverse = tl.where(square < float("inf"), inverse_of(square), float("nan"))
    best = -2.0  # below every cosine
    for start_m in range(first, past, BLOCK_M):
        m = start_m + tl.arange(0, BLOCK_M)
        products = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        own_squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            x = tl.load(vector_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
            inside = (m < past)[:, None] & (c < channels)[None, :]
            place = m.to(tl.int64)[:, None] * channels + c[None, :]
            p = tl.load(prototypes_ptr + place, mask=inside, other=0.0).to(tl.float32)
            products += x[None, :] * p
            own_squares += p * p
        cosine = tl.sum(products, 1) * inverse_of(tl.sum(own_squares, 1)) * inverse
        best = tl.maximum(best, tl.max(tl.where(m < past, cosine, -2.0), 0))
    return tl.where(inverse == inverse, best, inverse), inverse


@triton.jit
def store_robust_weight(
    student_ptr,
    teacher_ptr,
    student_prototypes_ptr,
    teacher_prototypes_ptr,
    labels_ptr,
    offsets_ptr,
    omega_ptr,
    student_scale_ptr,
    teacher_scale_ptr,
    instance,
    level,
    instances,
    prototypes,
    classes,
    student_channels,
    teacher_channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """omega of one instance and level, and omega / length of both embeddings, 0 if it takes no part."""
    row, column = level * instances + instance, level * prototypes
    first, past, label = class_range(labels_ptr, offsets_ptr, instance, True, classes, prototypes)
    if first < past:
        student_best, student_inverse = best_cosine(
            student_ptr + row * student_channels,
            student_prototypes_ptr + column * student_channels,
            first,
            past,
            student_channels,
            BLOCK_M,
            BLOCK_C,
        )
        teacher_best, teacher_inverse = best_cosine(
            teacher_ptr + row * teacher_channels,
            teacher_prototypes_ptr + column * teacher_channels,
            first,
            past,
            teacher_channels,
            BLOCK_M,
            BLOCK_C,
        )
        omega = 1.0 - tl.abs(student_best - teacher_best)
        tl.store(omega_ptr + row, omega)
        tl.store(student_scale_ptr + row, omega * student_inverse)
        tl.store(teacher_scale_ptr + row, omega * teacher_inverse)
    else:
        tl.store(omega_ptr + row, tl.where(label < 0, 0.0, 1.0))
        tl.store(student_scale_ptr + row, 0.0)
        tl.store(teacher_scale_ptr + row, 0.0)


@unspecialised
def robust_weight_kernel(
    student_ptr,
    teacher_ptr,
    student_prototypes_ptr,
    teacher_prototypes_ptr,
    labels_ptr,
    offsets_ptr,
    omega_ptr,
    student_scale_ptr,
    teacher_scale_ptr,
    student_inverse_ptr,
    teacher_inverse_ptr,
    instances,
    prototypes,
    classes,
    student_vectors,
    teacher_vectors,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """omega and omega / length [L,B], a program each; by further ones 1 / length of both spaces' prototypes [L,P]."""
    program, level = tl.program_id(0), tl.program_id(1).to(tl.int64)
    student_channels, teacher_channels = student_vectors * VECTOR, teacher_vectors * VECTOR
    blocks, column = (prototypes + BLOCK_ROWS - 1) // BLOCK_ROWS, level * prototypes
    if program < instances:
        store_robust_weight(
            student_ptr, teacher_ptr, student_prototypes_ptr, teacher_prototypes_ptr, labels_ptr, offsets_ptr,
            omega_ptr, student_scale_ptr, teacher_scale_ptr, program, level, instances, prototypes, classes,
            student_channels, teacher_channels, BLOCK_M, BLOCK_C,
        )  # fmt: skip
    elif program < instances + blocks:
        own_ptr, inverse_ptr = student_prototypes_ptr + column * student_channels, student_inverse_ptr + column
        block = program - instances
        store_inverse_lengths(own_ptr, inverse_ptr, block, prototypes, student_channels, BLOCK_ROWS, BLOCK_C)
    else:
        own_ptr, inverse_ptr = teacher_prototypes_ptr + column * teacher_channels, teacher_inverse_ptr + column
        block = program - instances - blocks
        store_inverse_lengths(own_ptr, inverse_ptr, block, prototypes, teacher_channels, BLOCK_ROWS, BLOCK_C)


@unspecialised
def row_weight_kernel(
    student_ptr,
    teacher_ptr,
    student_prototypes_ptr,
    teacher_prototypes_ptr,
    level_ptr,
    labels_ptr,
    instance_ptr,
    offsets_ptr,
    omega_ptr,
    own_labels,
    prototypes,
    classes,
    student_channels,
    teacher_channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """omega [S] of rows that belong to one level each; their instances are theirs alone where `own_labels`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.load(level_ptr + row) * prototypes
    instance = tl.where(own_labels != 0, row, tl.load(instance_ptr + row, mask=own_labels == 0, other=0))
    first, past, label = class_range(labels_ptr, offsets_ptr, instance, instance >= 0, classes, prototypes)
    if first < past:
        own, other = student_ptr + row * student_channels, teacher_ptr + row * teacher_channels
        own_prototypes = student_prototypes_ptr + column * student_channels
        other_prototypes = teacher_prototypes_ptr + column * teacher_channels
        student, _ = best_cosine(own, own_prototypes, first, past, student_channels, BLOCK_M, BLOCK_C)
        teacher, _ = best_cosine(other, other_prototypes, first, past, teacher_channels, BLOCK_M, BLOCK_C)
        tl.store(omega_ptr + row, 1.0 - tl.abs(student - teacher))
    else:
        tl.store(omega_ptr + row, tl.where(label < 0, 0.0, 1.0))


SCHEDULE = {"BLOCK_C": 256, "num_warps": 4, "num_stages": 1}
CONFIGURATION = SCHEDULE | {"BLOCK_M": 16, "BLOCK_ROWS": 4}
ROW_CONFIGURATION = {"BLOCK_M": 4} | SCHEDULE  # rows of any length are read one number at a time


def instance_weights(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
) -> tuple[Tensor, ...]:
    """omega, omega / |student|, omega / |teacher| [L,B], 1 / |prototype| of both spaces [L,P], all float32.

    The second and third are 0 for who takes no part; the last two mean nothing where there is no instance.
    """
    levels, instances = student.shape[:2]
    prototypes = student_prototypes.shape[1]
    shapes = (instances,) * 3 + (prototypes,) * 2
    results = tuple([student.new_empty((levels, count), dtype=torch.float32) for count in shapes])
    if levels * instances:
        robust_weight_kernel[(instances + 2 * cdiv(prototypes, CONFIGURATION["BLOCK_ROWS"]), levels)](
            student,
            teacher,
            student_prototypes,
            teacher_prototypes,
            labels,
            class_offsets,
            *results,
            instances,
            prototypes,
            class_offsets.shape[0] - 1,
            student.shape[2] // VECTOR.value,
            teacher.shape[2] // VECTOR.value,
            **CONFIGURATION,
        )
    return results


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
    """omega float32 [S]; see `gkd_fast.ops.robust_weights`."""
    omega = student.new_empty(student.shape[0], dtype=torch.float32)
    if omega.numel():
        one = student.dtype if student.dtype == teacher.dtype else torch.float32
        rows = ready(student.to(one)), ready(teacher.to(one))
        prototypes = ready(student_prototypes.float()), ready(teacher_prototypes.float())
        with on_device_of(omega):
            row_weight_kernel[(len(omega),)](
                *rows,
                *prototypes,
                ready(level),
                ready(labels),
                ready(level if instance is None else instance),
                ready(class_offsets),
                omega,
                int(instance is None),
                student_prototypes.shape[1],
                class_offsets.shape[0] - 1,
                student.shape[1],
                teacher.shape[1],
                **ROW_CONFIGURATION,
            )
    return omega


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    vectors = [f"{network}{part}_ptr" for network in ("student", "teacher") for part in ("", "_prototypes")]
    integers = dict.fromkeys(("labels_ptr", "offsets_ptr"), "*i64")
    types = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in robust_weight_kernel.arg_names} | integers
    forms = [types | dict.fromkeys(vectors, f"*{kind}") for kind in TYPES.values()]
    launches = [launch(robust_weight_kernel, form, CONFIGURATION) for form in forms]

    integers |= dict.fromkeys(("level_ptr", "instance_ptr"), "*i64")
    types = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in row_weight_kernel.arg_names} | integers
    forms = [types | dict.fromkeys(("student_ptr", "teacher_ptr"), f"*{kind}") for kind in TYPES.values()]
    of_rows = [launch(row_weight_kernel, form, ROW_CONFIGURATION) for form in forms]
    return {
        "robust_weight_kernel": KernelSpec(robust_weight_kernel, launches),
        "row_weight_kernel": KernelSpec(row_weight_kernel, of_rows),
    }


KERNELS = configurations()
