"""What cells count as background: tiles of cosines with the prototypes, of which only the largest leaves registers.

The difference from the channels' means is never stored: (f - mu).u = f.u - mu.u for a unit prototype u. With u rounded
to the type of the product first, in both terms, half types lose no more than in any cosine, however large mu is.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import (
    VECTOR,
    cdiv,
    on_device_of,
    precisions,
    product_configuration,
    product_precision,
    ready,
)
from gkd_fast.kernels._pyramid import (
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
from gkd_fast.kernels.unit_rows import SHORTEST_SQUARE, inverse_of

NO_PROTOTYPE = tl.constexpr(1e30)  # taken from a product, leaves less than any other, and is finite


@triton.jit
def centre_prototype(prototype_ptr, mean_ptr, unit_ptr, shift_ptr, channels, padded, filled, BLOCK_C: tl.constexpr):
    """One unit prototype, and what the product of the means with it is."""
    squares = tl.zeros((BLOCK_C,), tl.float32)
    largest = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        p = tl.load(prototype_ptr + c, mask=c < channels, other=0.0)
        difference = p - tl.load(mean_ptr + c, mask=c < channels, other=0.0)
        squares += difference * difference
        largest = tl.maximum(largest, tl.abs(p))
    inverse = inverse_of(tl.sum(squares, 0))
    shifts = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, padded, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        mean = tl.load(mean_ptr + c, mask=c < channels, other=0.0)
        difference = tl.load(prototype_ptr + c, mask=c < channels, other=0.0) - mean
        unit = (difference * inverse).to(unit_ptr.dtype.element_ty)
        tl.store(unit_ptr + c, unit, mask=c < padded)
        shifts += mean * unit.to(tl.float32)
    absent = (filled != 0) & (tl.max(largest, 0) == 0.0)
    tl.store(shift_ptr, tl.where(absent, NO_PROTOTYPE, tl.sum(shifts, 0)))


@unspecialised
def centre_prototypes_kernel(
    student_ptr,
    teacher_ptr,
    student_means_ptr,
    teacher_means_ptr,
    student_units_ptr,
    teacher_units_ptr,
    student_shifts_ptr,
    teacher_shifts_ptr,
    student_channels,
    teacher_channels,
    student_vectors,
    teacher_vectors,
    filled,
    BLOCK_C: tl.constexpr,
):
    """Units [L,P,padded C] and shifts [L,P] = mu.u of both spaces; of no prototype NO_PROTOTYPE."""
    level, space = tl.program_id(1).to(tl.int64), tl.program_id(2)
    row = level * tl.num_programs(0) + tl.program_id(0)
    if space == 0:
        channels, padded = student_channels.to(tl.int64), student_vectors * VECTOR
        own, mean = student_ptr + row * channels, student_means_ptr + level * channels
        centre_prototype(
            own, mean, student_units_ptr + row * padded, student_shifts_ptr + row, channels, padded, filled, BLOCK_C
        )
    else:
        channels, padded = teacher_channels.to(tl.int64), teacher_vectors * VECTOR
        own, mean = teacher_ptr + row * channels, teacher_means_ptr + level * channels
        centre_prototype(
            own, mean, teacher_units_ptr + row * padded, teacher_shifts_ptr + row, channels, padded, filled, BLOCK_C
        )


@triton.jit
def nearest_cosine(
    map_ptr,
    mean_ptr,
    units_ptr,
    shift_ptr,
    image,
    cell,
    cells,
    channels,
    padded,
    prototypes,
    UNIT: tl.constexpr,
    LAYOUT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Largest cosine [cells of a tile] with any prototype, of cells and prototypes less the means."""
    cells, channels = whole_lengths(cells, channels, UNIT, LAYOUT, LAYOUT)
    squares = tl.zeros((BLOCK_C, BLOCK_X), tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[:, None] & (cell < cells)[None, :]
        f = tl.load(map_ptr + tile_offsets(image, cells, channels, cell, c, LAYOUT), mask=inside, other=0.0)
        mean = tl.load(mean_ptr + c, mask=c < channels, other=0.0)
        difference = tl.where(inside, f.to(tl.float32) - mean[:, None], 0.0)
        squares += difference * difference
    square = tl.sum(squares, 0)

    largest = tl.full((BLOCK_X,), -1e30, tl.float32)
    for start in range(0, prototypes, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        products = tl.zeros((BLOCK_P, BLOCK_X), tl.float32)
        for first in range(0, channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            known = (p < prototypes)[:, None] & (c < padded)[None, :]
            u = tl.load(units_ptr + p.to(tl.int64)[:, None] * padded + c[None, :], mask=known, other=0.0)
            inside = (c < channels)[:, None] & (cell < cells)[None, :]
            f = tl.load(map_ptr + tile_offsets(image, cells, channels, cell, c, LAYOUT), mask=inside, other=0.0)
            products = tl.dot(u.to(OPERAND), f.to(OPERAND), products, input_precision=PRECISION)
        shift = tl.load(shift_ptr + p, mask=p < prototypes, other=NO_PROTOTYPE)
        largest = tl.maximum(largest, tl.max(products - shift[:, None], 0))
    short = square < SHORTEST_SQUARE
    return tl.where(short, 0.0, tl.div_rn(largest, tl.sqrt_rn(tl.where(short, 1.0, square))))


@unspecialised
def background_trust_kernel(
    first_ptr,
    second_ptr,
    third_ptr,
    fourth_ptr,
    fifth_ptr,
    means_ptr,
    units_ptr,
    shifts_ptr,
    trust_ptr,
    first_cells,
    second_cells,
    third_cells,
    fourth_cells,
    fifth_cells,
    second_start,
    third_start,
    fourth_start,
    fifth_start,
    first_level,
    first_cell,
    images,
    channels,
    vectors,
    prototypes,
    COMBINE: tl.constexpr,
    UNIT: tl.constexpr,
    LAYOUT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """trust [cells]: largest cosines; where COMBINE, it holds the student's, and then what both give together."""
    program = tl.program_id(0)
    slot = slot_of(program, second_start, third_start, fourth_start, fifth_start)
    map_ptr = pick(slot, first_ptr, second_ptr, third_ptr, fourth_ptr, fifth_ptr)
    cells = pick(slot, first_cells, second_cells, third_cells, fourth_cells, fifth_cells)
    program -= pick(slot, 0, second_start, third_start, fourth_start, fifth_start)
    tiles = (cells + BLOCK_X - 1) // BLOCK_X
    image, x = (program // tiles).to(tl.int64), program % tiles * BLOCK_X + tl.arange(0, BLOCK_X)
    padded, level = vectors * VECTOR, (first_level + slot).to(tl.int64)
    mean_ptr = means_ptr + level * channels
    own_units_ptr, shift_ptr = units_ptr + level * prototypes * padded, shifts_ptr + level * prototypes
    if is_whole(cells, channels, UNIT, LAYOUT, LAYOUT):
        cosine = nearest_cosine(
            map_ptr, mean_ptr, own_units_ptr, shift_ptr, image, x, cells, channels, padded, prototypes,
            UNIT, LAYOUT, OPERAND, PRECISION, BLOCK_P, BLOCK_X, BLOCK_C,
        )  # fmt: skip
    else:
        cosine = nearest_cosine(
            map_ptr, mean_ptr, own_units_ptr, shift_ptr, image, x, cells, channels, padded, prototypes,
            1, LAYOUT, OPERAND, PRECISION, BLOCK_P, BLOCK_X, BLOCK_C,
        )  # fmt: skip
    before = images.to(tl.int64) * cells_before(slot, first_cells, second_cells, third_cells, fourth_cells)
    place = trust_ptr + first_cell + before + image * cells + x
    if COMBINE:
        agreement = 1.0 - tl.abs(tl.load(place, mask=x < cells, other=0.0) - cosine)
        # Not by a maximum, which would hide what is not a number.
        cosine = tl.where(cosine < 0.0, 0.0, cosine) * tl.where(agreement < 0.0, 0.0, agreement)
    tl.store(place, cosine, mask=x < cells)


CENTRE = {"BLOCK_C": 256, "num_warps": 1, "num_stages": 1}


def _trust_configuration(layout: str, dtype: torch.dtype, precision: str, *, combine: bool) -> dict[str, Any]:
    shape = product_configuration(dtype, precision)
    del shape["BLOCK_B"]
    own = {"COMBINE": combine, "UNIT": unit_of(dtype), "LAYOUT": layout}
    # Products of float32 are three: a quarter of the tile, so that nothing is spilled.
    return shape | own | {"BLOCK_X": 128 if dtype != torch.float32 else 32, "num_warps": 8}


class Plan(NamedTuple):
    """One launch over levels of the same layout: programs, numbers and constants."""

    levels: range
    programs: int
    sizes: list[int]
    configuration: dict[str, Any]


@planned
def _plans(
    shapes: tuple[torch.Size, ...], dtype: torch.dtype, precision: str, layouts: tuple[str, ...], combine: bool
) -> list[Plan]:
    images, channels = shapes[0][:2]
    plans = []
    first = 0
    for (layout,), levels in runs(layouts):
        configuration = _trust_configuration(layout, dtype, precision, combine=combine)
        cells = [shapes[level][2] * shapes[level][3] for level in levels]
        programs, starts = starts_of([images * cdiv(n, configuration["BLOCK_X"]) for n in cells])
        vectors = cdiv(channels, VECTOR.value)
        sizes = [*slots(cells, 1), *starts, levels.start, first, images, channels, vectors]
        plans.append(Plan(levels, programs, sizes, configuration))
        first += images * sum(cells)
    return plans


def background_trust(
    student: list[Tensor],
    teacher: list[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    student_means: Tensor,
    teacher_means: Tensor,
    filled: bool,
) -> Tensor:
    """r [sum of N*H*W], float32; see `gkd_fast.ops.background_trust`."""
    spaces = (student, student_prototypes, student_means), (teacher, teacher_prototypes, teacher_means)
    cells = sum([n * h * w for n, _, h, w in shapes_of(student)])
    trust = student[0].new_empty(cells, dtype=torch.float32)
    levels, prototypes = student_prototypes.shape[:2]
    if not cells:
        return trust
    if not prototypes:
        return trust.zero_()
    with on_device_of(trust):
        rows, means = ([ready(space[i].float()) for space in spaces] for i in (1, 2))
        units = [_new_units(maps, own) for maps, own, _ in spaces]
        shifts = [trust.new_empty((levels, prototypes)) for _ in spaces]
        centre_prototypes_kernel[(prototypes, levels, 2)](
            *rows,
            *means,
            *units,
            *shifts,
            *(own.shape[2] for own in rows),
            *(unit.shape[2] // VECTOR.value for unit in units),
            int(filled),
            **CENTRE,
        )
        for number, (maps, *_) in enumerate(spaces):
            _project(maps, means[number], units[number], shifts[number], trust, combine=number == 1)
    return trust


def _new_units(maps: list[Tensor], prototypes: Tensor) -> Tensor:
    """Of the maps' dtype, filled up to whole VECTORs of channels."""
    levels, count, channels = prototypes.shape
    return maps[0].new_empty((levels, count, cdiv(channels, VECTOR.value) * VECTOR.value))


def _project(maps: list[Tensor], means: Tensor, units: Tensor, shifts: Tensor, trust: Tensor, *, combine: bool) -> None:
    pyramid, dtype = arranged(maps), maps[0].dtype
    for plan in _plans(shapes_of(maps), dtype, product_precision(dtype), pyramid.layouts, combine):
        tensors = *pyramid.of_launch(plan.levels), means, units, shifts, trust
        background_trust_kernel[(plan.programs,)](*tensors, *plan.sizes, units.shape[1], **plan.configuration)


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    levels = [f"{name}_ptr" for name in ("first", "second", "third", "fourth", "fifth")]

    def types(fn: triton.JITFunction, named: dict[str, str]) -> dict[str, str]:
        return {name: named.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in fn.arg_names}

    def of_maps(kind: str) -> dict[str, str]:
        return dict.fromkeys(levels, f"*{kind}") | {"units_ptr": f"*{kind}"}

    units = [
        types(centre_prototypes_kernel, {"student_units_ptr": f"*{student}", "teacher_units_ptr": f"*{teacher}"})
        for student in TYPES.values()
        for teacher in TYPES.values()
    ]
    trust = [
        launch(
            background_trust_kernel,
            types(background_trust_kernel, of_maps(kind)),
            _trust_configuration(layout, dtype, precision, combine=combine),
        )
        for layout in ("planes", "last")
        for dtype, kind in TYPES.items()
        for precision in precisions(dtype)
        for combine in (False, True)
    ]
    centre = [launch(centre_prototypes_kernel, kinds, CENTRE) for kinds in units]
    return {
        "centre_prototypes_kernel": KernelSpec(centre_prototypes_kernel, centre),
        "background_trust_kernel": KernelSpec(background_trust_kernel, trust),
    }


KERNELS = configurations()
