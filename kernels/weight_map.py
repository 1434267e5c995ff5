"""The weight maps of feature imitation: every cell asks the boxes, in their order, what it is painted with."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._spec import KernelSpec, launch, unspecialised

LARGEST = tl.constexpr(3.0e38)


@triton.jit
def cell_of(coordinate, stride, limit):
    """int(max(coordinate, 0) / stride), at most `limit`; 0 for NaN."""
    number = tl.where(coordinate == coordinate, coordinate, 0.0)
    return tl.minimum(tl.div_rn(tl.maximum(number, 0.0), stride), limit).to(tl.int32)


@unspecialised
def paint_kernel(
    boxes_ptr,
    image_index_ptr,
    omega_ptr,
    weights_ptr,
    sums_ptr,
    first_weight,
    level,
    sums_per_level,
    sums_per_kind,
    boxes,
    height,
    width,
    stride,
    base_size,
    smallest,
    larger,
    LAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Weights [N,H*W] of one level, and for each program the sum of its weights and the number of those <= 0.

    The level's boxes have sizes sqrt((w+1)(h+1)) / base_size + 1e-6 in [smallest, larger). omega [L,B]; the sums
    are rows 2 and 3 of [4,L,sums_per_level].
    """
    image = tl.program_id(1)
    cells = height * width
    cell = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    y, x = (cell // width)[None, :], (cell % width)[None, :]
    limit = tl.maximum(height, width).to(tl.float32)

    weight = tl.zeros((BLOCK_X,), tl.float32)
    for first in range(0, boxes, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        inside = b < boxes
        x1 = tl.load(boxes_ptr + b * 4, mask=inside, other=0.0)
        y1 = tl.load(boxes_ptr + b * 4 + 1, mask=inside, other=0.0)
        x2 = tl.load(boxes_ptr + b * 4 + 2, mask=inside, other=0.0)
        y2 = tl.load(boxes_ptr + b * 4 + 3, mask=inside, other=0.0)
        omega = tl.load(omega_ptr + level.to(tl.int64) * boxes + b, mask=inside, other=0.0)
        owner = tl.load(image_index_ptr + b, mask=inside, other=-1)

        area = tl.maximum(x2 - x1 + 1.0, 0.0) * tl.maximum(y2 - y1 + 1.0, 0.0)
        size = tl.div_rn(tl.sqrt_rn(area), base_size) + 1e-6
        size = tl.minimum(tl.where(size == size, size, 0.0), LARGEST)
        defined = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2) & (omega == omega)
        paints = inside & defined & (owner == image) & (size >= smallest) & (size < larger)

        left, top = cell_of(x1, stride, limit), cell_of(y1, stride, limit)
        right = tl.minimum(cell_of(x2, stride, limit), width)
        bottom = tl.minimum(cell_of(y2, stride, limit), height)
        single = (left >= right) | (top >= bottom)
        left = tl.where(single, tl.minimum(left, width - 1), left)
        top = tl.where(single, tl.minimum(top, height - 1), top)
        right = tl.where(single, left + 1, right)
        bottom = tl.where(single, top + 1, bottom)
        covers = paints[:, None] & (x >= left[:, None]) & (x < right[:, None])
        covers = covers & (y >= top[:, None]) & (y < bottom[:, None])
        if LAST:
            # Areas overwrite: only the last of them counts, and single cells that come after it.
            order = tl.where(covers & ~single[:, None], b[:, None], -1)
            newest = tl.max(order, 0)
            overwritten = tl.sum(tl.where((order == newest[None, :]) & (order >= 0), omega[:, None], 0.0), 0)
            weight = tl.where(newest >= 0, overwritten, weight)
            covers = covers & single[:, None] & (b[:, None] > newest[None, :])
        weight = tl.maximum(weight, tl.max(tl.where(covers, omega[:, None], -float("inf")), 0))

    written = cell < cells
    tl.store(weights_ptr + first_weight + image.to(tl.int64) * cells + cell, weight, mask=written)
    program = level * sums_per_level + image * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums_ptr + 2 * sums_per_kind + program, tl.sum(tl.where(written, weight, 0.0), 0))
    tl.store(sums_ptr + 3 * sums_per_kind + program, tl.sum(tl.where(written & (weight <= 0.0), 1.0, 0.0), 0))


# A box for each thread: fewer, and the compiler would have every thread work out all of them.
BLOCK_B, BLOCK_X = 128, 16


def _configuration(last: bool) -> dict[str, Any]:
    return {"LAST": last, "BLOCK_B": BLOCK_B, "BLOCK_X": BLOCK_X, "num_warps": 4, "num_stages": 1}


def painting_programs(images: int, cells: int) -> int:
    """Programs, and so partial sums, of one level."""
    return images * triton.cdiv(cells, BLOCK_X)


@cache
def smallest_size(level: int) -> float:
    """The smallest float32 whose log2, rounded to float32, reaches `level`."""
    size = torch.tensor(2.0**level)
    while (below := size.nextafter(size.new_zeros(()))).log2() >= level:
        size = below
    return size.item()


def paint(
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    weights: Tensor,
    sums: Tensor,
    shapes: Sequence[torch.Size],
    strides: Sequence[float],
    *,
    last: bool,
    base_size: float,
) -> None:
    """Paint `weights` [sum of N*H*W], level after level.

    A base size of 0 paints every box on every level. Partial sums go into rows 2 and 3 of `sums` [4,L,programs];
    shapes: [N,C,H,W] of each level.
    """
    first_weight = 0
    for level, (images, _, height, width) in enumerate(shapes):
        smallest = smallest_size(level) if level > 0 and base_size else float("-inf")
        larger = smallest_size(level + 1) if level < len(shapes) - 1 and base_size else float("inf")
        if images:
            paint_kernel[triton.cdiv(height * width, BLOCK_X), images](
                boxes,
                image_index,
                omega,
                weights,
                sums,
                first_weight,
                level,
                sums.stride(1),
                sums.stride(0),
                boxes.shape[0],
                height,
                width,
                strides[level],
                base_size or 1.0,
                smallest,
                larger,
                **_configuration(last),
            )
        first_weight += images * height * width


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    named = {"image_index_ptr": "*i64"} | dict.fromkeys(("stride", "base_size", "smallest", "larger"), "fp32")
    types = {n: named.get(n, "*fp32" if n.endswith("_ptr") else "i32") for n in paint_kernel.arg_names}
    forms = [launch(paint_kernel, types, _configuration(last)) for last in (False, True)]
    return {"paint_kernel": KernelSpec(paint_kernel, forms)}


KERNELS = configurations()
