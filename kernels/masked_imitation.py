"""Squared differences of two pyramids weighted by the painted boxes; each map is read once each way.

A program takes a run of cells of one image with their weights and walks over the channels in tiles whose rows
run along memory: along the cells where channels are planes, along the channels where those are adjacent.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import ceil_div, on_device_of, ready
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch
from gkd_fast.kernels.weight_map import paint, painting_programs

PROGRAMS_WANTED = 1024  # of one level: a few for every multiprocessor of a large device


@triton.jit
def tile_offsets(image, image_stride, pitch, cell, channel, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Elements [channels,cells] from a map's start; pitch, in VECTORs: from plane to plane, or from cell to cell."""
    pitch = pitch.to(tl.int64) * VECTOR
    if CHANNELS_LAST:
        inner = cell.to(tl.int64)[None, :] * pitch + channel[:, None]
    else:
        inner = channel.to(tl.int64)[:, None] * pitch + cell[None, :]
    return image * (image_stride.to(tl.int64) * VECTOR) + inner


SIZES = ["first_weight", "level", "cells", "channels", "blocks", "a_image", "a_pitch", "b_image", "b_pitch"]
GRADIENT_SIZES = ["need_a", "need_b", *(f"{m}_gradient_{length}" for m in "ab" for length in ("image", "pitch"))]


@triton.jit(do_not_specialize=[*SIZES, "sums_per_level", "sums_per_kind"])
def imitation_kernel(
    a_ptr,
    b_ptr,
    weights_ptr,
    sums_ptr,
    sums_per_level,
    sums_per_kind,
    first_weight,
    level,
    cells,
    channels,
    blocks,
    a_image,
    a_pitch,
    b_image,
    b_pitch,
    VECTOR: tl.constexpr,
    A_LAST: tl.constexpr,
    B_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Sums [2,L,programs] of W (A-B)^2 and [W <= 0] (A-B)^2 over some cells and `blocks` tiles of channels.

    Pitches, strides of images and what lies along memory, cells or channels, count VECTORs of elements.
    """
    if not (A_LAST and B_LAST):
        cells = cells * VECTOR
    if A_LAST or B_LAST:
        channels = channels * VECTOR
    image = tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    begin = tl.program_id(1) * blocks * BLOCK_C
    end = tl.minimum(begin + blocks * BLOCK_C, channels)

    squares = tl.zeros((BLOCK_C, BLOCK_X), tl.float32)
    for first in range(begin, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[:, None] & (x < cells)[None, :]
        a_place = tile_offsets(image, a_image, a_pitch, x, c, VECTOR, A_LAST)
        b_place = tile_offsets(image, b_image, b_pitch, x, c, VECTOR, B_LAST)
        a = tl.load(a_ptr + a_place, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + b_place, mask=inside, other=0.0).to(tl.float32)
        squares += (a - b) * (a - b)
    square = tl.sum(squares, 0)
    weight = tl.load(weights_ptr + first_weight + image * cells + x, mask=x < cells, other=0.0)
    program = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    sums = sums_ptr + level * sums_per_level + program
    tl.store(sums, tl.sum(weight * square, 0))
    tl.store(sums + sums_per_kind, tl.sum(tl.where(weight <= 0.0, square, 0.0), 0))


@triton.jit(
    do_not_specialize=[
        *SIZES,
        "need_a",
        "need_b",
        "a_gradient_image",
        "a_gradient_pitch",
        "b_gradient_image",
        "b_gradient_pitch",
    ]
)
def imitation_backward_kernel(
    a_ptr,
    b_ptr,
    weights_ptr,
    foreground_ptr,
    background_ptr,
    a_gradient_ptr,
    b_gradient_ptr,
    need_a,
    need_b,
    first_weight,
    level,
    cells,
    channels,
    blocks,
    a_image,
    a_pitch,
    b_image,
    b_pitch,
    a_gradient_image,
    a_gradient_pitch,
    b_gradient_image,
    b_gradient_pitch,
    VECTOR: tl.constexpr,
    A_LAST: tl.constexpr,
    B_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Gradient 2 (foreground W + background [W <= 0]) (A-B) of A and its negative of B, those that are needed.

    foreground, background [L]: gradients of the sums. Lengths as in `imitation_kernel`.
    """
    if not (A_LAST and B_LAST):
        cells = cells * VECTOR
    if A_LAST or B_LAST:
        channels = channels * VECTOR
    image = tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    begin = tl.program_id(1) * blocks * BLOCK_C
    end = tl.minimum(begin + blocks * BLOCK_C, channels)
    weight = tl.load(weights_ptr + first_weight + image * cells + x, mask=x < cells, other=0.0)
    background = tl.where(weight <= 0.0, tl.load(background_ptr + level), 0.0)
    slope = 2.0 * (tl.load(foreground_ptr + level) * weight + background)

    for first in range(begin, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[:, None] & (x < cells)[None, :]
        a_place = tile_offsets(image, a_image, a_pitch, x, c, VECTOR, A_LAST)
        b_place = tile_offsets(image, b_image, b_pitch, x, c, VECTOR, B_LAST)
        a = tl.load(a_ptr + a_place, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + b_place, mask=inside, other=0.0).to(tl.float32)
        gradient = slope[None, :] * (a - b)
        a_target = a_gradient_ptr + tile_offsets(image, a_gradient_image, a_gradient_pitch, x, c, VECTOR, A_LAST)
        b_target = b_gradient_ptr + tile_offsets(image, b_gradient_image, b_gradient_pitch, x, c, VECTOR, B_LAST)
        tl.store(a_target, gradient.to(a_gradient_ptr.dtype.element_ty), mask=inside & (need_a != 0))
        tl.store(b_target, (-gradient).to(b_gradient_ptr.dtype.element_ty), mask=inside & (need_b != 0))


class Map(NamedTuple):
    """A map [N,C,H,W] as the kernels read it: planes [C,H*W], or cells [H*W,C] where channels are adjacent."""

    tensor: Tensor
    last: bool
    image: int  # elements from image to image
    pitch: int  # elements from plane to plane, or from cell to cell

    @classmethod
    def of(cls, tensor: Tensor) -> "Map | None":
        """The map in its place, if its memory is of that kind."""
        _, channels, height, width = tensor.shape
        image, channel, row, cell = tensor.stride()
        if (width == 1 or cell == 1) and (height == 1 or row == width):
            return cls(tensor, False, image, channel)
        cell = cell if width > 1 else row
        if (channels == 1 or channel == 1) and (height == 1 or row == width * cell):
            return cls(tensor, True, image, cell)
        return None

    @classmethod
    def ready(cls, tensor: Tensor) -> "Map":
        """The map, copied only where its memory is of another kind or starts at no multiple of 16 bytes."""
        found = cls.of(tensor)
        if found is None:
            found = cls.of(tensor.contiguous())
        return cls.of(found.tensor.clone()) if found.tensor.data_ptr() % 16 else found

    @property
    def kind(self) -> tuple[bool, str]:
        return self.last, TYPES[self.tensor.dtype]


class Plan(NamedTuple):
    """How the maps of one level are cut into programs."""

    configuration: dict[str, Any]
    grid: tuple[int, int, int]
    cells: int
    channels: int
    blocks: int

    @classmethod
    def of(cls, a: Map, b: Map, *others: Map) -> "Plan":
        images, channels, height, width = a.tensor.shape
        cells = height * width
        lengths = [length for m in (a, b, *others) for length in (m.image, m.pitch)]
        lengths += [cells] * (not (a.last and b.last)) + [channels] * (a.last or b.last)
        elements = _vector(a.kind, b.kind)
        vector = elements if all(length % elements == 0 for length in lengths) else 1
        configuration = _configuration(a.kind, b.kind, vector)
        across, deep = ceil_div(cells, configuration["BLOCK_X"]), ceil_div(channels, configuration["BLOCK_C"])
        blocks = ceil_div(deep, max(1, PROGRAMS_WANTED // (across * images)))
        return cls(
            configuration,
            (across, ceil_div(deep, blocks), images),
            cells if a.last and b.last else cells // vector,
            channels // vector if a.last or b.last else channels,
            blocks,
        )

    def strides(self, *maps: Map) -> list[int]:
        """Strides of images and pitches, in VECTORs."""
        return [length // self.configuration["VECTOR"] for m in maps for length in (m.image, m.pitch)]


def _vector(a: tuple[bool, str], b: tuple[bool, str]) -> int:
    """Elements of 16 bytes, of the smaller type."""
    return 4 if a[1] == b[1] == "fp32" else 8


def _configuration(a: tuple[bool, str], b: tuple[bool, str], vector: int) -> dict[str, Any]:
    """Tiles of four accesses of 16 bytes a thread and map, along memory; square where the layouts differ."""
    half = "fp32" not in (a[1], b[1])
    if a[0] != b[0]:
        channels, cells = 32, 64
    elif a[0]:
        channels, cells = 64, 64 if half else 32
    else:
        channels, cells = 8 if half else 4, 512
    shape = {"BLOCK_C": channels, "BLOCK_X": cells}
    return {"VECTOR": vector, "A_LAST": a[0], "B_LAST": b[0], **shape, "num_warps": 4, "num_stages": 1}


def _ordered(a: Tensor, b: Tensor) -> list[Map]:
    """Both maps in the order of their kinds: half as many forms of the kernels."""
    return sorted((Map.ready(a), Map.ready(b)), key=lambda m: m.kind)


def masked_imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    strides: Sequence[float],
    last: bool,
    base_size: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Four sums [L] and the weights [sum of N*H*W], float32; see `gkd_fast.ops.masked_imitation`."""
    shapes = [s.shape for s in student]
    cells = [n * h * w for n, _, h, w in shapes]
    weights = student[0].new_empty(sum(cells), dtype=torch.float32)
    with on_device_of(weights):
        pairs = [_ordered(s, t) for s, t in zip(student, teacher, strict=True)]
        plans = [Plan.of(*pair) if pair[0].tensor.numel() else None for pair in pairs]
        counts = [painting_programs(n, h * w) for n, _, h, w in shapes]
        counts += [plan.grid[0] * plan.grid[1] * plan.grid[2] for plan in plans if plan]
        sums = weights.new_zeros((2, 2, len(shapes), max(counts)))
        boxes, image_index, omega = ready(boxes), ready(image_index), ready(omega.float())
        paint(boxes, image_index, omega, weights, sums[1], shapes, strides, last=last, base_size=base_size)
        for level, (pair, plan) in enumerate(zip(pairs, plans, strict=True)):
            if plan:
                imitation_kernel[plan.grid](
                    *(m.tensor for m in pair),
                    weights,
                    sums,
                    sums.stride(2),
                    sums.stride(1),
                    sum(cells[:level]),
                    level,
                    plan.cells,
                    plan.channels,
                    plan.blocks,
                    *plan.strides(*pair),
                    **plan.configuration,
                )
        foreground, background, weight, empty = sums.sum(3).flatten(0, 1).unbind(0)
    return foreground, background, weight, empty, weights


def masked_imitation_backward(
    foreground_gradient: Tensor,
    background_gradient: Tensor,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    weights: Tensor,
    need: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the maps in their dtypes and layouts; [0] where not needed."""
    foreground, background = ready(foreground_gradient), ready(background_gradient)
    levels, first_weight = len(student), 0
    gradients = [
        torch.empty_like(m) if needed else m.new_empty(0) for m, needed in zip((*student, *teacher), need, strict=True)
    ]
    with on_device_of(weights):
        for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
            wanted = [gradients[i] if need[i] else None for i in (level, levels + level)]
            if s.numel() and any(need[level::levels]):
                _differentiate(level, first_weight, s, t, weights, foreground, background, wanted)
            first_weight += s.shape[0] * s.shape[2] * s.shape[3]
    return gradients


def _differentiate(
    level: int,
    first_weight: int,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    foreground: Tensor,
    background: Tensor,
    gradients: list[Tensor | None],
) -> None:
    """Fill one level's gradients, of the student and of the teacher, those that are not None."""
    maps = [Map.ready(student), Map.ready(teacher)]
    targets = [_target(m, gradient) for m, gradient in zip(maps, gradients, strict=True)]
    order = sorted(range(2), key=lambda i: maps[i].kind)
    pair, written = [maps[i] for i in order], [targets[i] for i in order]
    plan = Plan.of(*pair, *written)
    imitation_backward_kernel[plan.grid](
        *(m.tensor for m in pair),
        weights,
        foreground,
        background,
        *(m.tensor for m in written),
        *(int(gradients[i] is not None) for i in order),
        first_weight,
        level,
        plan.cells,
        plan.channels,
        plan.blocks,
        *plan.strides(*pair, *written),
        **plan.configuration,
    )
    for target, gradient in zip(targets, gradients, strict=True):
        if gradient is not None and target.tensor is not gradient:
            gradient.copy_(target.tensor)


def _target(source: Map, gradient: Tensor | None) -> Map:
    """Where to write: the gradient if laid out as `source`, else new memory; `source` if nothing is written."""
    if gradient is None:
        return source
    found = Map.of(gradient)
    return found if found and found.last == source.last else Map.of(torch.empty_like(source.tensor))


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    kinds = [(last, kind) for last in (False, True) for kind in TYPES.values()]
    forms = [
        (a, b, vector) for a, b in combinations_with_replacement(sorted(kinds), 2) for vector in (_vector(a, b), 1)
    ]

    def spec(fn: triton.JITFunction) -> KernelSpec:
        launches = []
        for a, b, vector in forms:
            named = {f"{m}{part}_ptr": f"*{k[1]}" for m, k in (("a", a), ("b", b)) for part in ("", "_gradient")}
            types = {n: named.get(n, "*fp32" if n.endswith("_ptr") else "i32") for n in fn.arg_names}
            launches.append(launch(fn, types, _configuration(a, b, vector)))
        return KernelSpec(fn, launches)

    return {fn.__name__: spec(fn) for fn in (imitation_kernel, imitation_backward_kernel)}


KERNELS = configurations()
