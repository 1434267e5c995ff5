"""The weight maps of feature imitation: every cell asks the boxes, in their order, what it is painted with."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import cdiv
from gkd_fast.kernels._pyramid import MOST, cells_before, pick, planned, slot_of, slots, starts_of
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
    trust_ptr,
    weights_ptr,
    sums_ptr,
    first_height,
    second_height,
    third_height,
    fourth_height,
    fifth_height,
    first_width,
    second_width,
    third_width,
    fourth_width,
    fifth_width,
    second_start,
    third_start,
    fourth_start,
    fifth_start,
    first_level,
    first_cell,
    all_cells,
    first_sum,
    all_sums,
    images,
    boxes,
    trusted,
    first_stride,
    second_stride,
    third_stride,
    fourth_stride,
    fifth_stride,
    first_size,
    second_size,
    third_size,
    fourth_size,
    fifth_size,
    past_size,
    base_size,
    LAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """weights [2,all_cells]: what cells are painted with, and where that is not above 0, trust [all_cells] or 1.

    sums [2,all_sums]: for each program the sum of its weights and the number of those not above 0. A level's boxes have
    sizes sqrt((w+1)(h+1)) / base_size + 1e-6 from its own to the next one's; a base size of 0: every box. omega [L,B].
    """
    program = tl.program_id(0)
    slot = slot_of(program, second_start, third_start, fourth_start, fifth_start)
    height = pick(slot, first_height, second_height, third_height, fourth_height, fifth_height)
    width = pick(slot, first_width, second_width, third_width, fourth_width, fifth_width)
    stride = pick(slot, first_stride, second_stride, third_stride, fourth_stride, fifth_stride)
    smallest = pick(slot, first_size, second_size, third_size, fourth_size, fifth_size)
    larger = pick(slot, second_size, third_size, fourth_size, fifth_size, past_size)
    every = base_size == 0.0
    base = tl.where(every, 1.0, base_size)
    level = (first_level + slot).to(tl.int64)
    cells = height * width
    own = program - pick(slot, 0, second_start, third_start, fourth_start, fifth_start)
    across = (cells + BLOCK_X - 1) // BLOCK_X
    image = own // across
    cell = own % across * BLOCK_X + tl.arange(0, BLOCK_X)
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
        omega = tl.load(omega_ptr + level * boxes + b, mask=inside, other=0.0)
        owner = tl.load(image_index_ptr + b, mask=inside, other=-1)

        area = tl.maximum(x2 - x1 + 1.0, 0.0) * tl.maximum(y2 - y1 + 1.0, 0.0)
        size = tl.div_rn(tl.sqrt_rn(area), base) + 1e-6
        size = tl.minimum(tl.where(size == size, size, 0.0), LARGEST)
        defined = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2) & (omega == omega)
        paints = inside & defined & (owner == image) & (every | (size >= smallest) & (size < larger))

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
    before = cells_before(
        slot,
        first_height * first_width,
        second_height * second_width,
        third_height * third_width,
        fourth_height * fourth_width,
    )
    place = first_cell + images.to(tl.int64) * before + image.to(tl.int64) * cells + cell
    rest = tl.load(trust_ptr + place, mask=written & (trusted != 0), other=1.0)
    tl.store(weights_ptr + place, weight, mask=written)
    tl.store(weights_ptr + all_cells + place, tl.where(weight > 0.0, 0.0, rest), mask=written)
    sums = sums_ptr + first_sum + program
    tl.store(sums, tl.sum(tl.where(written, weight, 0.0), 0))
    tl.store(sums + all_sums, tl.sum(tl.where(written & (weight <= 0.0), 1.0, 0.0), 0))


# A box for each thread: fewer, and the compiler would have every thread work out all of them. What a program works out
# of a box it does for all of its cells.
BLOCK_B, BLOCK_X = 128, 32


def _configuration(last: bool) -> dict[str, Any]:
    return {"LAST": last, "BLOCK_B": BLOCK_B, "BLOCK_X": BLOCK_X, "num_warps": 4, "num_stages": 1}


@planned
def painting_programs(shapes: tuple[torch.Size, ...]) -> list[int]:
    """Programs, and so partial sums, of each level."""
    return [images * cdiv(height * width, BLOCK_X) for images, _, height, width in shapes]


@cache
def smallest_size(level: int) -> float:
    """The smallest float32 whose log2, rounded to float32, reaches `level`."""
    size = torch.tensor(2.0**level)
    while (below := size.nextafter(size.new_zeros(()))).log2() >= level:
        size = below
    return size.item()


class Painting(NamedTuple):
    """One launch over some levels.

    Attributes:
        programs: of all its levels.
        counts: what the kernel's integers begin with.
        sizes: what its floats begin with.
        first_cell, first_program: of the launch among all.
    """

    programs: int
    counts: list[int]
    sizes: list[float]
    first_cell: int
    first_program: int


@planned
def _paintings(shapes: tuple[torch.Size, ...], strides: tuple[float, ...]) -> list[Painting]:
    counts = painting_programs(shapes)
    paintings = []
    first_cell = first_program = 0
    for first in range(0, len(shapes), MOST):
        levels = range(first, min(first + MOST, len(shapes)))
        heights, widths = ([shapes[level][axis] for level in levels] for axis in (2, 3))
        sizes = [smallest_size(level) if level else float("-inf") for level in levels]
        past = smallest_size(levels[-1] + 1) if levels[-1] + 1 < len(shapes) else float("inf")
        programs, starts = starts_of([counts[level] for level in levels])
        own = slots([float(strides[level]) for level in levels], 1.0)
        integers, floats = [*slots(heights, 1), *slots(widths, 1), *starts, first], [*own, *slots(sizes, past), past]
        paintings.append(Painting(programs, integers, floats, first_cell, first_program))
        cells = sum(height * width for height, width in zip(heights, widths, strict=True))
        first_cell, first_program = first_cell + shapes[0][0] * cells, first_program + programs
    return paintings


def paint(
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    trust: Tensor | None,
    weights: Tensor,
    sums: Tensor,
    first_sum: int,
    shapes: tuple[torch.Size, ...],
    strides: Sequence[float],
    *,
    last: bool,
    base_size: float,
) -> None:
    """Paint `weights` [2, sum of N*H*W], level after level; the programs' sums are those of `sums` from first_sum on.

    A base size of 0 paints every box on every level. shapes: [N,C,H,W] of each level; trust [sum of N*H*W].
    """
    for painting in _paintings(shapes, tuple(strides)):
        paint_kernel[(painting.programs,)](
            boxes,
            image_index,
            omega,
            weights if trust is None else trust,
            weights,
            sums,
            *painting.counts,
            painting.first_cell,
            weights.shape[1],
            first_sum + painting.first_program,
            sums.shape[1],
            shapes[0][0],
            boxes.shape[0],
            int(trust is not None),
            *painting.sizes,
            float(base_size),
            **_configuration(last),
        )


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    types = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in paint_kernel.arg_names}
    types |= {n: "fp32" for n in types if n.endswith(("_stride", "_size"))} | {"image_index_ptr": "*i64"}
    forms = [launch(paint_kernel, types, _configuration(last)) for last in (False, True)]
    return {"paint_kernel": KernelSpec(paint_kernel, forms)}


KERNELS = configurations()
