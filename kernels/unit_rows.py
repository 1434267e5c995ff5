"""Lengths of vectors, and the way of a gradient back through the division by them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import VECTOR, cdiv, ready
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised

SHORTEST_SQUARE = tl.constexpr(1e-16)  # a vector shorter than 1e-8 has no direction


@triton.jit
def inverse_of(square):
    """1 / length from the squared length; 0 for a vector without direction."""
    short = square < SHORTEST_SQUARE
    return tl.where(short, 0.0, tl.div_rn(1.0, tl.sqrt_rn(tl.where(short, 1.0, square))))


@triton.jit
def store_inverse_lengths(
    vectors_ptr, inverse_ptr, block, rows, channels, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """inverse [rows] = 1 / |vectors [rows,C]|, of one block of rows."""
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pointers = vectors_ptr + row.to(tl.int64)[:, None] * channels
    squares = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        x = tl.load(pointers + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += x * x
    tl.store(inverse_ptr + row, inverse_of(tl.sum(squares, 1)), mask=row < rows)


@unspecialised
def inverse_lengths_kernel(
    vectors_ptr,
    other_vectors_ptr,
    inverse_ptr,
    other_inverse_ptr,
    rows,
    other_rows,
    channel_vectors,
    other_channel_vectors,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """inverse [rows] = 1 / |vectors [rows,C]| of two matrices."""
    block = tl.program_id(0)
    if tl.program_id(1) == 0:
        store_inverse_lengths(vectors_ptr, inverse_ptr, block, rows, channel_vectors * VECTOR, BLOCK_ROWS, BLOCK_C)
    else:
        channels = other_channel_vectors * VECTOR
        store_inverse_lengths(other_vectors_ptr, other_inverse_ptr, block, other_rows, channels, BLOCK_ROWS, BLOCK_C)


@unspecialised
def normalise_backward_kernel(
    parts_ptr,
    vectors_ptr,
    active_ptr,
    scale_ptr,
    factor_ptr,
    gradient_ptr,
    scaled,
    scale_step,
    rows,
    rows_per_level,
    channel_vectors,
    parts,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gradient [rows,C] = scale factor (g - (g . u) u) / |x| with g = sum of parts [parts,rows,C], u = x / |x|.

    scale and factor [levels] belong to `rows_per_level` rows each, and are 1 unless `scaled`; scale_step is 0 where one
    scale is that of all levels. A row whose `active` [rows] is 0 has no gradient, and is not looked at.
    """
    channels = channel_vectors * VECTOR
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    active = tl.load(active_ptr + row, mask=row < rows, other=0.0) != 0.0
    start = row.to(tl.int64)[:, None] * channels
    part_size = rows.to(tl.int64) * channels

    squares = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = active[:, None] & (channel < channels)[None, :]
        x = tl.load(vectors_ptr + start + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
        for part in range(0, parts):
            g += tl.load(parts_ptr + part * part_size + start + channel[None, :], mask=inside, other=0.0)
        squares += x * x
        products += g * x
    inverse = inverse_of(tl.sum(squares, 1))
    projection = tl.sum(products, 1) * inverse * inverse
    known, level = active & (scaled != 0), row // rows_per_level
    scale = tl.load(scale_ptr + level * scale_step, mask=known, other=1.0) * tl.load(
        factor_ptr + level, mask=known, other=1.0
    )
    factor = inverse * scale

    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = active[:, None] & (channel < channels)[None, :]
        x = tl.load(vectors_ptr + start + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
        for part in range(0, parts):
            g += tl.load(parts_ptr + part * part_size + start + channel[None, :], mask=inside, other=0.0)
        result = tl.where(active[:, None], factor[:, None] * (g - projection[:, None] * x), 0.0)
        written = (row < rows)[:, None] & (channel < channels)[None, :]
        tl.store(gradient_ptr + start + channel[None, :], result.to(gradient_ptr.dtype.element_ty), mask=written)


CONFIGURATION = {"BLOCK_ROWS": 4, "BLOCK_C": 256, "num_warps": 4, "num_stages": 1}


def inverse_lengths(vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """1 / length of vectors [L,R,C] and others [L,S,D], float32 [L,R] and [L,S]; 0 for one without direction."""
    both = vectors, others
    inverses = tuple(each.new_empty(each.shape[:2], dtype=torch.float32) for each in both)
    rows = [each.numel() for each in inverses]
    if max(rows):
        grid = cdiv(max(rows), CONFIGURATION["BLOCK_ROWS"]), 2
        widths = (each.shape[2] // VECTOR.value for each in both)
        there = rows.index(max(rows))  # stands for one without rows, which is not touched
        tensors = [pair[i if count else there] for pair in (both, inverses) for i, count in enumerate(rows)]
        inverse_lengths_kernel[grid](*tensors, *rows, *widths, **CONFIGURATION)
    return inverses


def normalise_backward(
    parts: Tensor, vectors: Tensor, active: Tensor, scale: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Gradient [L,R,C] of vectors from that of their unit vectors, given as parts [S,L,R,C] to be added.

    active [L,R]: 0 where there is no gradient; scale: two factors [L] for each level.
    """
    gradient = torch.empty_like(vectors)
    levels, rows, channels = vectors.shape
    if gradient.numel():
        grid = (cdiv(levels * rows, CONFIGURATION["BLOCK_ROWS"]),)
        sizes = levels * rows, rows, channels // VECTOR.value, parts.shape[0]
        one, factor = scale or (active, active)
        step = one.stride(0) and 1  # an expanded number is not copied
        tensors = parts, vectors, active, ready(one) if step else one, factor, gradient
        normalise_backward_kernel[grid](*tensors, int(scale is not None), step, *sizes, **CONFIGURATION)
    return gradient


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""

    def types(fn: triton.JITFunction, kind: str) -> dict[str, str]:
        vectors = dict.fromkeys(("vectors_ptr", "other_vectors_ptr", "gradient_ptr"), f"*{kind}")
        return {name: vectors.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in fn.arg_names}

    return {
        fn.__name__: KernelSpec(fn, [launch(fn, types(fn, kind), CONFIGURATION) for kind in TYPES.values()])
        for fn in (inverse_lengths_kernel, normalise_backward_kernel)
    }


KERNELS = configurations()
