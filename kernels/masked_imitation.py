"""Squared differences of two pyramids weighted by the painted boxes; each map is read once each way.

A program takes a run of cells of one image with their weights and walks over the channels in tiles whose rows
run along memory: along the cells where channels are planes, along the channels where those are adjacent. All levels of
the same layouts share a launch.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import cdiv, on_device_of, ready
from gkd_fast.kernels._pyramid import (
    MOST,
    Pyramid,
    arranged,
    cells_before,
    is_whole,
    pick,
    planned,
    runs,
    shapes_of,
    slot_of,
    slots,
    starts_of,
    tile_offsets,
    unit_of,
    whole_lengths,
)
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised
from gkd_fast.kernels.weight_map import paint, painting_programs

PROGRAMS_WANTED = 1024  # of one level: a few for every multiprocessor of a large device


@triton.jit
def tile_of(program, cells, blocks, images, channels, BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr):
    """Image, cells [BLOCK_X] and channels [begin,end) of a program of its level."""
    across = (cells + BLOCK_X - 1) // BLOCK_X
    begin = program // (across * images) * blocks * BLOCK_C
    x = program % across * BLOCK_X + tl.arange(0, BLOCK_X)
    return (program // across % images).to(tl.int64), x, begin, tl.minimum(begin + blocks * BLOCK_C, channels)


@triton.jit
def load_tiles(
    a_ptr,
    b_ptr,
    image,
    x,
    c,
    cells,
    channels,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
):
    """Both maps' values [channels,cells], where they lie in memory, and which of them there are."""
    inside = (c < channels)[:, None] & (x < cells)[None, :]
    a_place = tile_offsets(image, cells, channels, x, c, A_LAYOUT)
    b_place = tile_offsets(image, cells, channels, x, c, B_LAYOUT)
    a = tl.load(a_ptr + a_place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + b_place, mask=inside, other=0.0).to(tl.float32)
    return a, b, a_place, b_place, inside


@triton.jit
def tile_squares(
    a_ptr,
    b_ptr,
    image,
    x,
    begin,
    end,
    cells,
    channels,
    UNIT: tl.constexpr,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Sums [cells of a tile] of (A-B)^2 over the channels [begin,end); lengths along memory are multiples of UNIT."""
    cells, channels = whole_lengths(cells, channels, UNIT, A_LAYOUT, B_LAYOUT)
    squares = tl.zeros((BLOCK_C, BLOCK_X), tl.float32)
    for first in range(begin, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        a, b, _, _, _ = load_tiles(a_ptr, b_ptr, image, x, c, cells, channels, A_LAYOUT, B_LAYOUT)
        squares += (a - b) * (a - b)
    return tl.sum(squares, 0)


@unspecialised
def imitation_kernel(
    a_first_ptr,
    a_second_ptr,
    a_third_ptr,
    a_fourth_ptr,
    a_fifth_ptr,
    b_first_ptr,
    b_second_ptr,
    b_third_ptr,
    b_fourth_ptr,
    b_fifth_ptr,
    weights_ptr,
    sums_ptr,
    first_cells,
    second_cells,
    third_cells,
    fourth_cells,
    fifth_cells,
    first_blocks,
    second_blocks,
    third_blocks,
    fourth_blocks,
    fifth_blocks,
    second_start,
    third_start,
    fourth_start,
    fifth_start,
    first_cell,
    all_cells,
    first_sum,
    all_sums,
    images,
    channels,
    UNIT: tl.constexpr,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """sums [2,all_sums]: of W (A-B)^2 and R (A-B)^2 over some cells and `blocks` tiles of channels.

    weights [2,all_cells]: W, and R, the weights outside of boxes; those of the launch begin at first_cell.
    """
    program = tl.program_id(0)
    slot = slot_of(program, second_start, third_start, fourth_start, fifth_start)
    a_ptr = pick(slot, a_first_ptr, a_second_ptr, a_third_ptr, a_fourth_ptr, a_fifth_ptr)
    b_ptr = pick(slot, b_first_ptr, b_second_ptr, b_third_ptr, b_fourth_ptr, b_fifth_ptr)
    cells = pick(slot, first_cells, second_cells, third_cells, fourth_cells, fifth_cells)
    blocks = pick(slot, first_blocks, second_blocks, third_blocks, fourth_blocks, fifth_blocks)
    own = program - pick(slot, 0, second_start, third_start, fourth_start, fifth_start)
    image, x, begin, end = tile_of(own, cells, blocks, images, channels, BLOCK_C, BLOCK_X)
    if is_whole(cells, channels, UNIT, A_LAYOUT, B_LAYOUT):
        square = tile_squares(
            a_ptr, b_ptr, image, x, begin, end, cells, channels, UNIT, A_LAYOUT, B_LAYOUT, BLOCK_C, BLOCK_X
        )
    else:
        square = tile_squares(
            a_ptr, b_ptr, image, x, begin, end, cells, channels, 1, A_LAYOUT, B_LAYOUT, BLOCK_C, BLOCK_X
        )
    before = images.to(tl.int64) * cells_before(slot, first_cells, second_cells, third_cells, fourth_cells)
    place = weights_ptr + first_cell + before + image * cells + x
    weight = tl.load(place, mask=x < cells, other=0.0)
    outside = tl.load(place + all_cells, mask=x < cells, other=0.0)
    tl.store(sums_ptr + first_sum + program, tl.sum(weight * square, 0))
    tl.store(sums_ptr + all_sums + first_sum + program, tl.sum(outside * square, 0))


@triton.jit
def store_gradients(
    a_ptr,
    b_ptr,
    a_gradient_ptr,
    b_gradient_ptr,
    need_a,
    need_b,
    slope,
    image,
    x,
    begin,
    end,
    cells,
    channels,
    UNIT: tl.constexpr,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradient slope (A-B) of A and its negative of B, over the channels [begin,end); lengths as in tile_squares."""
    cells, channels = whole_lengths(cells, channels, UNIT, A_LAYOUT, B_LAYOUT)
    for first in range(begin, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        a, b, a_place, b_place, inside = load_tiles(a_ptr, b_ptr, image, x, c, cells, channels, A_LAYOUT, B_LAYOUT)
        gradient = slope[None, :] * (a - b)
        a_value, b_value = gradient.to(a_gradient_ptr.dtype.element_ty), (-gradient).to(b_gradient_ptr.dtype.element_ty)
        tl.store(a_gradient_ptr + a_place, a_value, mask=inside & (need_a != 0))
        tl.store(b_gradient_ptr + b_place, b_value, mask=inside & (need_b != 0))


@unspecialised
def imitation_backward_kernel(
    a_first_ptr,
    a_second_ptr,
    a_third_ptr,
    a_fourth_ptr,
    a_fifth_ptr,
    b_first_ptr,
    b_second_ptr,
    b_third_ptr,
    b_fourth_ptr,
    b_fifth_ptr,
    a_gradient_first_ptr,
    a_gradient_second_ptr,
    a_gradient_third_ptr,
    a_gradient_fourth_ptr,
    a_gradient_fifth_ptr,
    b_gradient_first_ptr,
    b_gradient_second_ptr,
    b_gradient_third_ptr,
    b_gradient_fourth_ptr,
    b_gradient_fifth_ptr,
    weights_ptr,
    slopes_ptr,
    first_cells,
    second_cells,
    third_cells,
    fourth_cells,
    fifth_cells,
    first_blocks,
    second_blocks,
    third_blocks,
    fourth_blocks,
    fifth_blocks,
    second_start,
    third_start,
    fourth_start,
    fifth_start,
    first_cell,
    all_cells,
    first_level,
    levels,
    need_a,
    need_b,
    images,
    channels,
    UNIT: tl.constexpr,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Gradient 2 (foreground W + background R) (A-B) of A and its negative of B, those that are needed.

    slopes [2,levels]: gradients of the sums, foreground and background. need_a, need_b: a bit for each level of the
    launch.
    """
    program = tl.program_id(0)
    slot = slot_of(program, second_start, third_start, fourth_start, fifth_start)
    a_ptr = pick(slot, a_first_ptr, a_second_ptr, a_third_ptr, a_fourth_ptr, a_fifth_ptr)
    b_ptr = pick(slot, b_first_ptr, b_second_ptr, b_third_ptr, b_fourth_ptr, b_fifth_ptr)
    a_gradient_ptr = pick(
        slot,
        a_gradient_first_ptr,
        a_gradient_second_ptr,
        a_gradient_third_ptr,
        a_gradient_fourth_ptr,
        a_gradient_fifth_ptr,
    )
    b_gradient_ptr = pick(
        slot,
        b_gradient_first_ptr,
        b_gradient_second_ptr,
        b_gradient_third_ptr,
        b_gradient_fourth_ptr,
        b_gradient_fifth_ptr,
    )
    cells = pick(slot, first_cells, second_cells, third_cells, fourth_cells, fifth_cells)
    blocks = pick(slot, first_blocks, second_blocks, third_blocks, fourth_blocks, fifth_blocks)
    own = program - pick(slot, 0, second_start, third_start, fourth_start, fifth_start)
    image, x, begin, end = tile_of(own, cells, blocks, images, channels, BLOCK_C, BLOCK_X)
    before = images.to(tl.int64) * cells_before(slot, first_cells, second_cells, third_cells, fourth_cells)
    place = weights_ptr + first_cell + before + image * cells + x
    weight = tl.load(place, mask=x < cells, other=0.0)
    outside = tl.load(place + all_cells, mask=x < cells, other=0.0)
    slope_ptr = slopes_ptr + first_level + slot
    slope = 2.0 * (tl.load(slope_ptr) * weight + tl.load(slope_ptr + levels) * outside)
    wanted_a, wanted_b = (need_a >> slot) & 1, (need_b >> slot) & 1
    if is_whole(cells, channels, UNIT, A_LAYOUT, B_LAYOUT):
        store_gradients(
            a_ptr, b_ptr, a_gradient_ptr, b_gradient_ptr, wanted_a, wanted_b, slope, image, x, begin, end,
            cells, channels, UNIT, A_LAYOUT, B_LAYOUT, BLOCK_C,
        )  # fmt: skip
    else:
        store_gradients(
            a_ptr, b_ptr, a_gradient_ptr, b_gradient_ptr, wanted_a, wanted_b, slope, image, x, begin, end,
            cells, channels, 1, A_LAYOUT, B_LAYOUT, BLOCK_C,
        )  # fmt: skip


@unspecialised
def imitation_sums_kernel(
    sums_ptr,
    squares_ptr,
    totals_ptr,
    first_sums,
    second_sums,
    third_sums,
    fourth_sums,
    fifth_sums,
    first_painted,
    second_painted,
    third_painted,
    fourth_painted,
    fifth_painted,
    first_sum,
    first_paint,
    all_sums,
    first_level,
    levels,
    BLOCK: tl.constexpr,
):
    """Each level's totals of the programs' sums [2,all_sums]: squares [2,levels], and of paint totals [2,levels]."""
    slot, kind = tl.program_id(0), tl.program_id(1)
    of_maps = kind < 2
    count = pick(slot, first_sums, second_sums, third_sums, fourth_sums, fifth_sums)
    begin = first_sum + cells_before(slot, first_sums, second_sums, third_sums, fourth_sums)
    painted = pick(slot, first_painted, second_painted, third_painted, fourth_painted, fifth_painted)
    before = cells_before(slot, first_painted, second_painted, third_painted, fourth_painted)
    count = tl.where(of_maps, count, painted)
    begin = kind % 2 * all_sums + tl.where(of_maps, begin, first_paint + before)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + begin + i, mask=i < count, other=0.0)
    to_ptr = tl.where(of_maps, squares_ptr, totals_ptr)
    tl.store(to_ptr + kind % 2 * levels + first_level + slot, tl.sum(total, 0))


SUMS = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}


class Plan(NamedTuple):
    """One launch over levels of the same layouts.

    Attributes:
        levels: of the pyramids.
        order: of the two pyramids, whose layouts are then in the order of the configuration.
        configuration: constants and schedule.
        counts: programs of each level.
        sizes: what both kernels' numbers begin with.
        first_cell, first_program: of the launch among all.
    """

    levels: range
    order: list[int]
    configuration: dict[str, Any]
    counts: list[int]
    sizes: list[int]
    first_cell: int
    first_program: int

    def tensors(self, *pyramids: Pyramid) -> list[Tensor]:
        """The maps of two pyramids, or of their gradients, as the kernels take them."""
        first, second = self.order
        return [*pyramids[first].of_launch(self.levels), *pyramids[second].of_launch(self.levels)]


@planned
def _plans(shapes: tuple[torch.Size, ...], dtype: torch.dtype, *layouts: tuple[str, ...]) -> list[Plan]:
    """The launches over two pyramids of these layouts."""
    plans: list[Plan] = []
    first_cell = first_program = 0
    images, channels = shapes[0][:2]
    for form, levels in runs(*layouts):
        order = sorted(range(2), key=form.__getitem__)
        configuration = _configuration(dtype, *(form[i] for i in order))
        cells = [shapes[level][2] * shapes[level][3] for level in levels]
        deep = cdiv(channels, configuration["BLOCK_C"])
        across = [images * cdiv(n, configuration["BLOCK_X"]) for n in cells]
        blocks = [cdiv(deep, max(1, PROGRAMS_WANTED // n)) for n in across]
        counts = [n * cdiv(deep, count) for n, count in zip(across, blocks, strict=True)]
        programs, starts = starts_of(counts)
        sizes = [*slots(cells, 1), *slots(blocks, 1), *starts]
        plans.append(Plan(levels, order, configuration, counts, sizes, first_cell, first_program))
        first_cell, first_program = first_cell + images * sum(cells), first_program + programs
    return plans


def _configuration(dtype: torch.dtype, a: str, b: str) -> dict[str, Any]:
    """Tiles of some accesses of 16 bytes a thread and map, along memory; squarer where the layouts differ."""
    channels, cells = {
        ("last", "last"): (64, 32),
        ("last", "planes"): (32, 64),
        ("planes", "planes"): (4, 512),
    }[a, b]
    shape = {"BLOCK_C": channels, "BLOCK_X": cells, "num_warps": 4, "num_stages": 1}
    return {"UNIT": unit_of(dtype), "A_LAYOUT": a, "B_LAYOUT": b, **shape}


def _arranged(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Pyramid, Pyramid]:
    """Both pyramids in one dtype: float32 where theirs differ."""
    if student[0].dtype != teacher[0].dtype:
        student, teacher = ([m.float() for m in maps] for maps in (student, teacher))
    return arranged(student), arranged(teacher)


def masked_imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    trust: Tensor | None,
    strides: Sequence[float],
    last: bool,
    base_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums [2,L] and [2,L], and the weights [2, sum of N*H*W], float32; see `gkd_fast.ops.imitation_sums`."""
    shapes = shapes_of(student)
    weights = student[0].new_empty((2, sum([n * h * w for n, _, h, w in shapes])), dtype=torch.float32)
    squares, totals = weights.new_empty((2, len(shapes))), weights.new_empty((2, len(shapes)))
    images, channels = shapes[0][:2]
    if not images:
        return squares.zero_(), totals.zero_(), weights
    with on_device_of(weights):
        a, b = _arranged(student, teacher)
        plans = _plans(shapes, a.maps[0].dtype, a.layouts, b.layouts) if channels else []
        counts = [count for plan in plans for count in plan.counts] or [0] * len(shapes)
        paintings = painting_programs(shapes)
        sums = weights.new_empty((2, sum(counts) + sum(paintings)))
        boxes, image_index, omega = ready(boxes), ready(image_index), ready(omega.float())
        trust = None if trust is None else ready(trust.float())
        of_paint = sums, sum(counts)
        paint(boxes, image_index, omega, trust, weights, *of_paint, shapes, strides, last=last, base_size=base_size)
        for plan in plans:
            places = plan.first_cell, weights.shape[1], plan.first_program, sums.shape[1]
            imitation_kernel[(sum(plan.counts),)](
                *plan.tensors(a, b), weights, sums, *plan.sizes, *places, images, channels, **plan.configuration
            )
        _add_up(counts, paintings, sums, squares, totals)
    return squares, totals, weights


def _add_up(counts: list[int], paintings: list[int], sums: Tensor, squares: Tensor, totals: Tensor) -> None:
    """Fill squares [2,L] and totals [2,L] from the sums of each level's programs, those of paint behind the others."""
    for first in range(0, len(counts), MOST):
        own, of_paint = counts[first : first + MOST], paintings[first : first + MOST]
        places = sum(counts[:first]), sum(counts) + sum(paintings[:first]), sums.shape[1], first, len(counts)
        imitation_sums_kernel[len(own), 4](sums, squares, totals, *slots(own, 0), *slots(of_paint, 0), *places, **SUMS)


def masked_imitation_backward(
    gradient: Tensor,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    weights: Tensor,
    need: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the maps in their dtypes and layouts; [0] where not needed."""
    given, wanted = (student, teacher), (need[: len(student)], need[len(student) :])
    with on_device_of(weights):
        maps = _arranged(student, teacher)
        targets = [_targets(*each) for each in zip(maps, wanted, strict=True)]
        if any(need) and student[0].shape[0] and student[0].shape[1]:
            _differentiate(maps, targets, wanted, weights, ready(gradient))
        return [g for each in zip(given, maps, targets, wanted, strict=True) for g in _gradients(*each)]


def _targets(source: Pyramid, need: Sequence[bool]) -> Pyramid:
    """Where gradients are written; for one that is not needed its map stands, which is not written."""
    if not any(need):
        return source
    targets = [torch.empty_like(m) if needed else m for m, needed in zip(source.maps, need, strict=True)]
    return Pyramid(targets, source.layouts)


def _gradients(given: Sequence[Tensor], source: Pyramid, target: Pyramid, need: Sequence[bool]) -> list[Tensor]:
    """What was written, in the dtypes and layouts of the maps that were given."""
    nothing = given[0].new_empty(0)
    gradients = []
    for own, m, written, needed in zip(given, source.maps, target.maps, need, strict=True):
        if not needed:
            gradients.append(nothing)
        else:
            gradients.append(written if m is own else torch.empty_like(own).copy_(written))
    return gradients


def _differentiate(
    maps: tuple[Pyramid, Pyramid],
    targets: list[Pyramid],
    need: Sequence[Sequence[bool]],
    weights: Tensor,
    slopes: Tensor,
) -> None:
    """Fill the gradients that are needed."""
    shapes = shapes_of(maps[0].maps)
    for plan in _plans(shapes, maps[0].maps[0].dtype, maps[0].layouts, maps[1].layouts):
        wanted = [sum(need[i][level] << slot for slot, level in enumerate(plan.levels)) for i in plan.order]
        if any(wanted):
            places = plan.first_cell, weights.shape[1], plan.levels.start, slopes.shape[1]
            imitation_backward_kernel[(sum(plan.counts),)](
                *plan.tensors(*maps),
                *plan.tensors(*targets),
                weights,
                slopes,
                *plan.sizes,
                *places,
                *wanted,
                *shapes[0][:2],
                **plan.configuration,
            )


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""

    def spec(fn: triton.JITFunction) -> KernelSpec:
        launches = []
        for a, b in combinations_with_replacement(("last", "planes"), 2):
            for dtype, kind in TYPES.items():
                types = {n: f"*{kind}" if n[:2] in ("a_", "b_") else "*fp32" for n in fn.arg_names}
                types |= {n: "i32" for n in fn.arg_names if not n.endswith("_ptr")}
                launches.append(launch(fn, types, _configuration(dtype, a, b)))
        return KernelSpec(fn, launches)

    totals = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in imitation_sums_kernel.arg_names}
    adding = KernelSpec(imitation_sums_kernel, [launch(imitation_sums_kernel, totals, SUMS)])
    specs = {fn.__name__: spec(fn) for fn in (imitation_kernel, imitation_backward_kernel)}
    return specs | {"imitation_sums_kernel": adding}


KERNELS = configurations()
