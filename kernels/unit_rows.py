"""Lengths of vectors, and the way of a gradient back through the division by them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import VECTOR
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised

SHORTEST_SQUARE = tl.constexpr(1e-16)  # a vector shorter than 1e-8 has no direction


@triton.jit
def inverse_of(square):
    """1 / length from the squared length; 0 for a vector without direction."""
    short = square < SHORTEST_SQUARE
    return tl.where(short, 0.0, tl.div_rn(1.0, tl.sqrt_rn(tl.where(short, 1.0, square))))


@unspecialised
def inverse_lengths_kernel(
    vectors_ptr,
    inverse_ptr,
    rows,
    channel_vectors,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """inverse [rows] = 1 / |vectors [rows,C]|."""
    channels = channel_vectors * VECTOR
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pointers = vectors_ptr + row.to(tl.int64)[:, None] * channels
    squares = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        x = tl.load(pointers + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += x * x
    tl.store(inverse_ptr + row, inverse_of(tl.sum(squares, 1)), mask=row < rows)


@unspecialised
def normalise_backward_kernel(
    parts_ptr,
    vectors_ptr,
    active_ptr,
    scale_ptr,
    gradient_ptr,
    rows,
    rows_per_level,
    channel_vectors,
    parts,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gradient [rows,C] = scale (g - (g . u) u) / |x| with g = sum of parts [parts,rows,C], u = x / |x|.

    scale [levels] belongs to `rows_per_level` rows each; a row whose `active` [rows] is 0 has no gradient, and
    is not looked at.
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
    factor = inverse * tl.load(scale_ptr + row // rows_per_level, mask=active, other=0.0)

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


def inverse_lengths(vectors: Tensor) -> Tensor:
    """1 / length of the vectors [L,R,C], float32 [L,R]; 0 for a vector without direction."""
    levels, rows, channels = vectors.shape
    inverse = vectors.new_empty((levels, rows), dtype=torch.float32)
    if inverse.numel():
        grid = (triton.cdiv(inverse.numel(), CONFIGURATION["BLOCK_ROWS"]),)
        inverse_lengths_kernel[grid](vectors, inverse, inverse.numel(), channels // VECTOR.value, **CONFIGURATION)
    return inverse


def normalise_backward(parts: Tensor, vectors: Tensor, active: Tensor, scale: Tensor) -> Tensor:
    """Gradient [L,R,C] of vectors from that of their unit vectors, given as parts [S,L,R,C] to be added.

    active [L,R]: 0 where there is no gradient; scale [L]: a factor for each level.
    """
    gradient = torch.empty_like(vectors)
    levels, rows, channels = vectors.shape
    if gradient.numel():
        grid = (triton.cdiv(levels * rows, CONFIGURATION["BLOCK_ROWS"]),)
        sizes = levels * rows, rows, channels // VECTOR.value, parts.shape[0]
        normalise_backward_kernel[grid](parts, vectors, active, scale, gradient, *sizes, **CONFIGURATION)
    return gradient


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    counts = dict.fromkeys(("rows", "rows_per_level", "channel_vectors", "parts"), "i32")
    floats = dict.fromkeys(("parts_ptr", "active_ptr", "scale_ptr", "inverse_ptr"), "*fp32")
    types = [counts | floats | dict.fromkeys(("vectors_ptr", "gradient_ptr"), f"*{kind}") for kind in TYPES.values()]
    return {
        fn.__name__: KernelSpec(fn, [launch(fn, kinds, CONFIGURATION) for kinds in types])
        for fn in (inverse_lengths_kernel, normalise_backward_kernel)
    }


KERNELS = configurations()
