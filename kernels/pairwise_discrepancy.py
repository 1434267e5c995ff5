"""Global loss and robust weights: tiles of both networks' cosines that live in registers only.

First the weight of every instance from the prototypes of its own class; with it the tiles of all prototypes know their
terms. Where there will be a gradient they leave their slopes, one number a pair: to compute the tiles of both networks
again would be two products more.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import (
    VECTOR,
    cdiv,
    gradient_precision,
    like_input,
    on_device_of,
    precisions,
    product_configuration,
    product_precision,
    ready,
    ready_vectors,
)
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised
from gkd_fast.kernels.robust_weights import class_range, instance_weights
from gkd_fast.kernels.unit_rows import normalise_backward

PROGRAMS_WANTED = 512  # a few for every multiprocessor of a large device
MOST_PARTS = 8  # of the gradient, each a buffer of its size in float32


@triton.jit
def products(
    rows_ptr,
    columns_ptr,
    row,
    row_inside,
    column,
    column_inside,
    channels,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """[BLOCK_B,BLOCK_P] inner products of the vectors `row` and `column` of two matrices."""
    result = tl.zeros((BLOCK_B, BLOCK_P), tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[None, :]
        x = tl.load(rows_ptr + row[:, None] * channels + c[None, :], mask=row_inside[:, None] & inside, other=0.0)
        y = tl.load(
            columns_ptr + column[:, None] * channels + c[None, :], mask=column_inside[:, None] & inside, other=0.0
        )
        result = tl.dot(x.to(OPERAND), tl.trans(y.to(OPERAND)), result, input_precision=PRECISION)
    return result


@triton.jit
def weighted_difference(
    own_ptr,
    other_ptr,
    own_prototypes_ptr,
    other_prototypes_ptr,
    own_scale_ptr,
    other_scale_ptr,
    own_inverse,
    other_inverse,
    row,
    row_inside,
    column,
    column_inside,
    own_channels,
    other_channels,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """[BLOCK_B,BLOCK_P] omega (cos_own - cos_other); rows that take no part are not looked at, and give 0."""
    own_scale = tl.load(own_scale_ptr + row, mask=row_inside, other=0.0)
    other_scale = tl.load(other_scale_ptr + row, mask=row_inside, other=0.0)
    own = products(
        own_ptr,
        own_prototypes_ptr,
        row,
        own_scale != 0.0,
        column,
        column_inside,
        own_channels,
        OPERAND,
        PRECISION,
        BLOCK_B,
        BLOCK_P,
        BLOCK_C,
    )
    other = products(
        other_ptr,
        other_prototypes_ptr,
        row,
        other_scale != 0.0,
        column,
        column_inside,
        other_channels,
        OPERAND,
        PRECISION,
        BLOCK_B,
        BLOCK_P,
        BLOCK_C,
    )
    own = own * own_scale[:, None] * own_inverse[None, :]
    return own - other * other_scale[:, None] * other_inverse[None, :]


@triton.jit
def slope_places(level, instances, prototypes, b, p):
    """Places [BLOCK_B,BLOCK_P] in slopes [L,B,P filled up to whole VECTORs], and which there are."""
    pitch = (prototypes + VECTOR - 1) // VECTOR * VECTOR
    place = (level * instances + b)[:, None] * pitch + p[None, :]
    return place, (b < instances)[:, None] & (p < pitch)[None, :]


@unspecialised
def discrepancy_kernel(
    student_ptr,
    teacher_ptr,
    student_prototypes_ptr,
    teacher_prototypes_ptr,
    student_scale_ptr,
    teacher_scale_ptr,
    student_inverse_ptr,
    teacher_inverse_ptr,
    sums_ptr,
    slopes_ptr,
    instances,
    prototypes,
    student_vectors,
    teacher_vectors,
    keep,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """sums [L,tiles] of the terms smooth_l1(omega cos_student, omega cos_teacher), and their slopes where to `keep`."""
    level = tl.program_id(1).to(tl.int64)
    columns = (prototypes + BLOCK_P - 1) // BLOCK_P
    b = tl.program_id(0) // columns * BLOCK_B + tl.arange(0, BLOCK_B)
    p = tl.program_id(0) % columns * BLOCK_P + tl.arange(0, BLOCK_P)
    column = level * prototypes + p
    difference = weighted_difference(
        student_ptr,
        teacher_ptr,
        student_prototypes_ptr,
        teacher_prototypes_ptr,
        student_scale_ptr,
        teacher_scale_ptr,
        tl.load(student_inverse_ptr + column, mask=p < prototypes, other=0.0),
        tl.load(teacher_inverse_ptr + column, mask=p < prototypes, other=0.0),
        level * instances + b,
        b < instances,
        column,
        p < prototypes,
        student_vectors * VECTOR,
        teacher_vectors * VECTOR,
        OPERAND,
        PRECISION,
        BLOCK_B,
        BLOCK_P,
        BLOCK_C,
    )
    slope = tl.minimum(tl.maximum(difference, -1.0), 1.0)
    place, inside = slope_places(level, instances, prototypes, b, p)
    tl.store(slopes_ptr + place, slope, mask=inside & (keep != 0))
    terms = slope * (difference - 0.5 * slope)
    tl.store(sums_ptr + level * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(terms, 1), 0))


@unspecialised
def discrepancy_mean_kernel(
    sums_ptr,
    labels_ptr,
    offsets_ptr,
    loss_ptr,
    inverse_pairs_ptr,
    tiles,
    instances,
    prototypes,
    classes,
    BLOCK: tl.constexpr,
):
    """loss [L] = sum over tiles / pairs, and 1 / pairs [L]: instances that take part times all prototypes."""
    level = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + level * tiles + tile, mask=tile < tiles, other=0.0)
    count = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, instances, BLOCK):
        instance = first + tl.arange(0, BLOCK)
        start, past, _ = class_range(labels_ptr, offsets_ptr, instance, instance < instances, classes, prototypes)
        count += tl.where(start < past, 1.0, 0.0)
    pairs = tl.maximum(tl.sum(count, 0) * prototypes, 1.0)
    tl.store(loss_ptr + level, tl.sum(total, 0) / pairs)
    tl.store(inverse_pairs_ptr + level, 1.0 / pairs)


@unspecialised
def discrepancy_backward_kernel(
    prototypes_ptr,
    inverse_ptr,
    omega_ptr,
    slopes_ptr,
    parts_ptr,
    instances,
    prototypes,
    vectors,
    sign,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """parts [S,L,B,C] of the gradient of the sum of terms with respect to one network's unit embeddings."""
    channels = vectors * VECTOR
    part, level = tl.program_id(1), tl.program_id(2).to(tl.int64)
    slices = (channels + BLOCK_D - 1) // BLOCK_D
    b = tl.program_id(0) // slices * BLOCK_B + tl.arange(0, BLOCK_B)
    d = tl.program_id(0) % slices * BLOCK_D + tl.arange(0, BLOCK_D)
    row = level * instances + b
    omega = sign * tl.load(omega_ptr + row, mask=b < instances, other=0.0)

    gradient = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for first in range(part * BLOCK_P, prototypes, tl.num_programs(1) * BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        column = level * prototypes + p
        inverse = tl.load(inverse_ptr + column, mask=p < prototypes, other=0.0)
        place, inside = slope_places(level, instances, prototypes, b, p)
        slope = tl.load(slopes_ptr + place, mask=inside, other=0.0)
        coefficient = omega[:, None] * slope * inverse[None, :]
        prototype = tl.load(
            prototypes_ptr + column[:, None] * channels + d[None, :],
            mask=(p < prototypes)[:, None] & (d < channels)[None, :],
            other=0.0,
        )
        gradient = tl.dot(coefficient, prototype.to(tl.float32), gradient, input_precision=PRECISION)
    place = (part * tl.num_programs(2).to(tl.int64) * instances + row)[:, None] * channels + d[None, :]
    tl.store(parts_ptr + place, gradient, mask=(b < instances)[:, None] & (d < channels)[None, :])


MEAN = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}


def _backward_configuration(dtype: torch.dtype, precision: str, slice_size: int) -> dict[str, Any]:
    precision = gradient_precision(dtype, precision)
    shape = {"BLOCK_B": 32, "BLOCK_P": 32, "BLOCK_D": slice_size, "num_warps": 8, "num_stages": 2}
    return {"PRECISION": precision} | shape


def _slice_size(channels: int) -> int:
    """Channels whose gradient one program keeps in registers."""
    return 64 if channels <= 64 else 256


def pairwise_discrepancy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
    need_student: bool,
    need_teacher: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss [L], omega [L,B], and what the gradient starts from; see `gkd_fast.ops.pairwise_discrepancy`."""
    s, t, p, q = ready_vectors(student, teacher, student_prototypes, teacher_prototypes)
    labels, class_offsets = ready(labels), ready(class_offsets)
    levels, instances, prototypes = *s.shape[:2], p.shape[1]
    classes = class_offsets.shape[0] - 1
    widths = s.shape[2] // VECTOR.value, t.shape[2] // VECTOR.value
    loss, inverse_pairs = (s.new_empty(levels, dtype=torch.float32) for _ in range(2))
    with on_device_of(s):
        omega, *vectors = instance_weights(s, t, p, q, labels, class_offsets)
        configuration = product_configuration(s.dtype, product_precision(s.dtype))
        tiles = cdiv(instances, configuration["BLOCK_B"]) * cdiv(prototypes, configuration["BLOCK_P"])
        sums = loss.new_empty((levels, tiles))
        pitch = cdiv(prototypes, VECTOR.value) * VECTOR.value
        keep = need_student or need_teacher
        slopes = loss.new_empty((levels, instances, pitch) if keep else 0)
        if sums.numel():
            results = sums, slopes if keep else sums
            discrepancy_kernel[(tiles, levels)](
                s, t, p, q, *vectors, *results, instances, prototypes, *widths, int(keep), **configuration
            )
        if levels:
            sizes = tiles, instances, prototypes, classes
            discrepancy_mean_kernel[(levels,)](sums, labels, class_offsets, loss, inverse_pairs, *sizes, **MEAN)
    return loss, omega, [*vectors, inverse_pairs, slopes]


def pairwise_discrepancy_backward(
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
    """Gradients in the embeddings' dtypes; [0] where not needed."""
    s, t, p, q = ready_vectors(student, teacher, student_prototypes, teacher_prototypes)
    student_scale, teacher_scale, student_inverse, teacher_inverse, inverse_pairs, slopes = state
    of_pairs = omega, slopes
    scale = loss_gradient, inverse_pairs
    student_gradient, teacher_gradient = s.new_empty(0), t.new_empty(0)
    with on_device_of(s):
        if need_student:
            student_gradient = _gradient(s, p, student_scale, student_inverse, *of_pairs, 1.0, scale)
        if need_teacher:
            teacher_gradient = _gradient(t, q, teacher_scale, teacher_inverse, *of_pairs, -1.0, scale)
    return like_input(student_gradient, student), like_input(teacher_gradient, teacher)


def _gradient(
    embeddings: Tensor,
    prototypes: Tensor,
    active: Tensor,
    inverse: Tensor,
    omega: Tensor,
    slopes: Tensor,
    sign: float,
    scale: tuple[Tensor, Tensor],
) -> Tensor:
    """Of one network's embeddings; active [L,B] is 0 for who takes no part, inverse [L,P] = 1 / |prototype|."""
    levels, instances, channels = embeddings.shape
    precision = product_precision(embeddings.dtype)
    configuration = _backward_configuration(embeddings.dtype, precision, _slice_size(channels))
    programs = cdiv(instances, configuration["BLOCK_B"]) * cdiv(channels, configuration["BLOCK_D"])
    wanted = min(MOST_PARTS, cdiv(prototypes.shape[1], configuration["BLOCK_P"]))
    count = max(1, min(wanted, PROGRAMS_WANTED // max(1, programs * levels)))
    parts = embeddings.new_empty((count, levels, instances, channels), dtype=torch.float32)
    if parts.numel():
        sizes = instances, prototypes.shape[1], channels // VECTOR.value
        discrepancy_backward_kernel[(programs, count, levels)](
            prototypes, inverse, omega, slopes, parts, *sizes, sign, **configuration
        )
    return normalise_backward(parts, embeddings, active, scale)


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    forms = [(dtype, precision) for dtype in TYPES for precision in precisions(dtype)]

    def types(fn: triton.JITFunction, dtype: torch.dtype) -> dict[str, str]:
        """Embeddings and prototypes have the dtype, labels and offsets are int64, the rest is float32 or a size."""
        vectors = ["prototypes_ptr", *(f"{a}{b}_ptr" for a in ("student", "teacher") for b in ("", "_prototypes"))]
        named = dict.fromkeys(vectors, f"*{TYPES[dtype]}") | dict.fromkeys(("labels_ptr", "offsets_ptr"), "*i64")
        named |= {"sign": "fp32"}
        return {name: named.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in fn.arg_names}

    def spec(fn: triton.JITFunction, configured: list[tuple[torch.dtype, dict[str, Any]]]) -> KernelSpec:
        return KernelSpec(fn, [launch(fn, types(fn, dtype), configuration) for dtype, configuration in configured])

    backward = [(form[0], _backward_configuration(*form, size)) for form in forms for size in (64, 256)]
    return {
        "discrepancy_kernel": spec(discrepancy_kernel, [(form[0], product_configuration(*form)) for form in forms]),
        "discrepancy_mean_kernel": spec(discrepancy_mean_kernel, [(torch.float32, MEAN)]),
        "discrepancy_backward_kernel": spec(discrepancy_backward_kernel, backward),
    }


KERNELS = configurations()
