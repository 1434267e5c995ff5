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
    student_first_ptr,
    student_second_ptr,
    student_third_ptr,
    student_fourth_ptr,
    student_fifth_ptr,
    teacher_first_ptr,
    teacher_second_ptr,
    teacher_third_ptr,
    teacher_fourth_ptr,
    teacher_fifth_ptr,
    student_means_ptr,
    teacher_means_ptr,
    student_units_ptr,
    teacher_units_ptr,
    student_shifts_ptr,
    teacher_shifts_ptr,
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
    first_space,
    past_space,
    student_channels,
    teacher_channels,
    student_vectors,
    teacher_vectors,
    prototypes,
    UNIT: tl.constexpr,
    LAYOUT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """trust [cells] from both spaces, or from one: the student's leaves its largest cosines there for the teacher's."""
    program = tl.program_id(0)
    slot = slot_of(program, second_start, third_start, fourth_start, fifth_start)
    student_ptr = pick(
        slot, student_first_ptr, student_second_ptr, student_third_ptr, student_fourth_ptr, student_fifth_ptr
    )
    teacher_ptr = pick(
        slot, teacher_first_ptr, teacher_second_ptr, teacher_third_ptr, teacher_fourth_ptr, teacher_fifth_ptr
    )
    cells = pick(slot, first_cells, second_cells, third_cells, fourth_cells, fifth_cells)
    program -= pick(slot, 0, second_start, third_start, fourth_start, fifth_start)
    tiles = (cells + BLOCK_X - 1) // BLOCK_X
    image, x = (program // tiles).to(tl.int64), program % tiles * BLOCK_X + tl.arange(0, BLOCK_X)
    before = images.to(tl.int64) * cells_before(slot, first_cells, second_cells, third_cells, fourth_cells)
    place = trust_ptr + first_cell + before + image * cells + x
    level = (first_level + slot).to(tl.int64)
    trust = tl.load(place, mask=(x < cells) & (first_space != 0), other=0.0)
    for space in range(first_space, past_space):
        of_teacher = space != 0
        map_ptr = tl.where(of_teacher, teacher_ptr, student_ptr)
        channels = tl.where(of_teacher, teacher_channels, student_channels)
        padded = tl.where(of_teacher, teacher_vectors, student_vectors) * VECTOR
        mean_ptr = tl.where(of_teacher, teacher_means_ptr, student_means_ptr) + level * channels
        units_ptr = tl.where(of_teacher, teacher_units_ptr, student_units_ptr) + level * prototypes * padded
        shift_ptr = tl.where(of_teacher, teacher_shifts_ptr, student_shifts_ptr) + level * prototypes
        if is_whole(cells, channels, UNIT, LAYOUT, LAYOUT):
            cosine = nearest_cosine(
                map_ptr, mean_ptr, units_ptr, shift_ptr, image, x, cells, channels, padded, prototypes,
                UNIT, LAYOUT, OPERAND, PRECISION, BLOCK_P, BLOCK_X, BLOCK_C,
            )  # fmt: skip
        else:
            cosine = nearest_cosine(
                map_ptr, mean_ptr, units_ptr, shift_ptr, image, x, cells, channels, padded, prototypes,
                1, LAYOUT, OPERAND, PRECISION, BLOCK_P, BLOCK_X, BLOCK_C,
            )  # fmt: skip
        agreement = 1.0 - tl.abs(trust - cosine)
        # Not by a maximum, which would hide what is not a number.
        both = tl.where(cosine < 0.0, 0.0, cosine) * tl.where(agreement < 0.0, 0.0, agreement)
        trust = tl.where(of_teacher, both, cosine)
    tl.store(place, trust, mask=x < cells)


CENTRE = {"BLOCK_C": 256, "num_warps": 1, "num_stages": 1}


def _trust_configuration(layout: str, dtype: torch.dtype, precision: str) -> dict[str, Any]:
    shape = product_configuration(dtype, precision)
    del shape["BLOCK_B"]
    own = {"UNIT": unit_of(dtype), "LAYOUT": layout}
    # Products of float32 are three: a quarter of the tile, so that nothing is spilled.
    return shape | own | {"BLOCK_X": 128 if dtype != torch.float32 else 32, "num_warps": 8}


class Plan(NamedTuple):
    """One launch over levels of the same layout, of one space or both: programs, numbers and constants."""

    levels: range
    spaces: range
    programs: int
    sizes: list[int]
    configuration: dict[str, Any]


@planned
def _plans(
    shapes: tuple[torch.Size, ...], types: tuple[tuple[torch.dtype, str], ...], *layouts: tuple[str, ...]
) -> list[Plan]:
    """The launches over maps of two spaces, whose types are dtypes and precisions."""
    images = shapes[0][0]
    plans = []
    first = 0
    for form, levels in runs(*layouts):
        cells = [shapes[level][2] * shapes[level][3] for level in levels]
        alike = form[0] == form[1] and types[0] == types[1]
        for spaces in [range(2)] if alike else [range(1), range(1, 2)]:
            configuration = _trust_configuration(form[spaces.start], *types[spaces.start])
            programs, starts = starts_of([images * cdiv(n, configuration["BLOCK_X"]) for n in cells])
            sizes = [*slots(cells, 1), *starts, levels.start, first, images, spaces.start, spaces.stop]
            plans.append(Plan(levels, spaces, programs, sizes, configuration))
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
        _project((student, teacher), means, units, shifts, trust)
    return trust


def _new_units(maps: list[Tensor], prototypes: Tensor) -> Tensor:
    """Of the maps' dtype, filled up to whole VECTORs of channels."""
    levels, count, channels = prototypes.shape
    return maps[0].new_empty((levels, count, cdiv(channels, VECTOR.value) * VECTOR.value))


def _project(
    spaces: tuple[list[Tensor], list[Tensor]],
    means: list[Tensor],
    units: list[Tensor],
    shifts: list[Tensor],
    trust: Tensor,
) -> None:
    """Fill trust from the maps of both spaces."""
    pyramids = [arranged(maps) for maps in spaces]
    types = tuple([(maps[0].dtype, product_precision(maps[0].dtype)) for maps in spaces])
    for plan in _plans(shapes_of(spaces[0]), types, *(pyramid.layouts for pyramid in pyramids)):
        own = plan.spaces[0], plan.spaces[-1]
        maps = [m for i in own for m in pyramids[i].of_launch(plan.levels)]
        tensors = [pair[i] for pair in (means, units, shifts) for i in own]
        sizes = [means[i].shape[1] for i in own] + [units[i].shape[2] // VECTOR.value for i in own]
        background_trust_kernel[(plan.programs,)](
            *maps, *tensors, trust, *plan.sizes, *sizes, shifts[0].shape[1], **plan.configuration
        )


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    maps = [f"{s}_{n}_ptr" for s in ("student", "teacher") for n in ("first", "second", "third", "fourth", "fifth")]

    def types(fn: triton.JITFunction, named: dict[str, str]) -> dict[str, str]:
        return {name: named.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in fn.arg_names}

    units = [
        types(centre_prototypes_kernel, {"student_units_ptr": f"*{student}", "teacher_units_ptr": f"*{teacher}"})
        for student in TYPES.values()
        for teacher in TYPES.values()
    ]
    trust = [
        launch(
            background_trust_kernel,
            types(
                background_trust_kernel, dict.fromkeys((*maps, "student_units_ptr", "teacher_units_ptr"), f"*{kind}")
            ),
            _trust_configuration(layout, dtype, precision),
        )
        for layout in ("planes", "last")
        for dtype, kind in TYPES.items()
        for precision in precisions(dtype)
    ]
    centre = [launch(centre_prototypes_kernel, kinds, CENTRE) for kinds in units]
    return {
        "centre_prototypes_kernel": KernelSpec(centre_prototypes_kernel, centre),
        "background_trust_kernel": KernelSpec(background_trust_kernel, trust),
    }


KERNELS = configurations()
