"""Means of the channels of a pyramid: sums over parts of the images, then one number for each channel and level."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import cdiv, on_device_of
from gkd_fast.kernels._pyramid import (
    arranged,
    cells_before,
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


@triton.jit
def channel_sums(
    map_ptr,
    image,
    cell,
    channel,
    cells,
    channels,
    UNIT: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Sums [channels,cells of a tile] over TILES tiles of cells that follow each other."""
    cells, channels = whole_lengths(cells, channels, UNIT, LAYOUT, LAYOUT)
    sums = tl.zeros((BLOCK_C, BLOCK_X), tl.float32)
    for tile in range(0, TILES):
        x = cell + tile * BLOCK_X
        inside = (channel < channels)[:, None] & (x < cells)[None, :]
        place = tile_offsets(image, cells, channels, x, channel, LAYOUT)
        sums += tl.load(map_ptr + place, mask=inside, other=0.0).to(tl.float32)
    return sums


@unspecialised
def channel_sum_kernel(
    first_ptr,
    second_ptr,
    third_ptr,
    fourth_ptr,
    fifth_ptr,
    sums_ptr,
    first_cells,
    second_cells,
    third_cells,
    fourth_cells,
    fifth_cells,
    second_start,
    third_start,
    fourth_start,
    fifth_start,
    channels,
    LAYOUT: tl.constexpr,
    UNIT: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """sums [parts,C] of the channels over parts of the images, level after level; a program has a part and BLOCK_C."""
    blocks = (channels + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    slot = slot_of(program, second_start, third_start, fourth_start, fifth_start)
    map_ptr = pick(slot, first_ptr, second_ptr, third_ptr, fourth_ptr, fifth_ptr)
    cells = pick(slot, first_cells, second_cells, third_cells, fourth_cells, fifth_cells)
    part = (program - pick(slot, 0, second_start, third_start, fourth_start, fifth_start)) // blocks
    parts = (cells + TILES * BLOCK_X - 1) // (TILES * BLOCK_X)
    image = (part // parts).to(tl.int64)
    x = part % parts * (TILES * BLOCK_X) + tl.arange(0, BLOCK_X)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    along = cells if LAYOUT == "planes" else channels
    if along % UNIT == 0:
        sums = channel_sums(map_ptr, image, x, c, cells, channels, UNIT, LAYOUT, TILES, BLOCK_C, BLOCK_X)
    else:
        sums = channel_sums(map_ptr, image, x, c, cells, channels, 1, LAYOUT, TILES, BLOCK_C, BLOCK_X)
    place = (program // blocks).to(tl.int64) * channels + c
    tl.store(sums_ptr + place, tl.sum(sums, 1), mask=c < channels)


@unspecialised
def channel_mean_kernel(
    sums_ptr,
    means_ptr,
    first_parts,
    second_parts,
    third_parts,
    fourth_parts,
    fifth_parts,
    first_count,
    second_count,
    third_count,
    fourth_count,
    fifth_count,
    first_level,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """means [L,C]: the sums of a level's parts divided by its number of cells."""
    slot = tl.program_id(1)
    parts = pick(slot, first_parts, second_parts, third_parts, fourth_parts, fifth_parts)
    count = pick(slot, first_count, second_count, third_count, fourth_count, fifth_count)
    begin = cells_before(slot, first_parts, second_parts, third_parts, fourth_parts)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    totals = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = (p < parts)[:, None] & (c < channels)[None, :]
        totals += tl.load(sums_ptr + (begin + p).to(tl.int64)[:, None] * channels + c[None, :], mask=inside, other=0.0)
    mean = tl.div_rn(tl.sum(totals, 0), count.to(tl.float32))
    tl.store(means_ptr + (first_level + slot) * channels + c, mean, mask=c < channels)


MEAN = {"BLOCK_P": 32, "BLOCK_C": 32, "num_warps": 4, "num_stages": 1}


def _configuration(layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """Tiles of some accesses of 16 bytes a thread, along memory."""
    channels, cells = (4, 512) if layout == "planes" else (64, 32)
    shape = {"BLOCK_C": channels, "BLOCK_X": cells, "num_warps": 4, "num_stages": 1}
    return {"LAYOUT": layout, "UNIT": unit_of(dtype), "TILES": 4 if layout == "planes" else 16} | shape


class Plan(NamedTuple):
    """The two launches over levels of the same layout: programs, numbers and constants of each."""

    levels: range
    programs: int
    parts: int
    sizes: list[int]
    configuration: dict[str, Any]
    grid: tuple[int, int]
    mean_sizes: list[int]


@planned
def _plans(shapes: tuple[torch.Size, ...], dtype: torch.dtype, layouts: tuple[str, ...]) -> list[Plan]:
    images, channels = shapes[0][:2]
    plans = []
    for (layout,), levels in runs(layouts):
        configuration = _configuration(layout, dtype)
        cells = [shapes[level][2] * shapes[level][3] for level in levels]
        parts = [images * cdiv(n, configuration["TILES"] * configuration["BLOCK_X"]) for n in cells]
        blocks = cdiv(channels, configuration["BLOCK_C"])
        programs, starts = starts_of([blocks * count for count in parts])
        counts = slots([images * n for n in cells], 1)
        grid = cdiv(channels, MEAN["BLOCK_C"]), len(levels)
        mean_sizes = [*slots(parts, 0), *counts, levels.start, channels]
        sizes = [*slots(cells, 1), *starts, channels]
        plans.append(Plan(levels, programs, sum(parts), sizes, configuration, grid, mean_sizes))
    return plans


def channel_means(features: list[Tensor]) -> Tensor:
    """Means [L,C], float32; see `gkd_fast.ops.channel_means`."""
    shapes = shapes_of(features)
    images, channels = shapes[0][:2]
    means = features[0].new_empty((len(features), channels), dtype=torch.float32)
    if not images or not channels:
        return means.zero_()
    with on_device_of(means):
        pyramid = arranged(features)
        for plan in _plans(shapes, features[0].dtype, pyramid.layouts):
            sums = means.new_empty((plan.parts, channels))
            tensors = pyramid.of_launch(plan.levels)
            channel_sum_kernel[(plan.programs,)](*tensors, sums, *plan.sizes, **plan.configuration)
            channel_mean_kernel[plan.grid](sums, means, *plan.mean_sizes, **MEAN)
    return means


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""

    def types(fn: triton.JITFunction, kind: str) -> dict[str, str]:
        own = {f"{name}_ptr": f"*{kind}" for name in ("first", "second", "third", "fourth", "fifth")}
        return {name: own.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in fn.arg_names}

    sums = [
        launch(channel_sum_kernel, types(channel_sum_kernel, kind), _configuration(layout, dtype))
        for layout in ("planes", "last")
        for dtype, kind in TYPES.items()
    ]
    mean = [launch(channel_mean_kernel, types(channel_mean_kernel, "fp32"), MEAN)]
    return {
        "channel_sum_kernel": KernelSpec(channel_sum_kernel, sums),
        "channel_mean_kernel": KernelSpec(channel_mean_kernel, mean),
    }


KERNELS = configurations()
