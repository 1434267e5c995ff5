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

from gkd_fast.kernels._launch import on_device_of, ready
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised
from gkd_fast.kernels.weight_map import paint, painting_programs

PROGRAMS_WANTED = 1024  # of one level: a few for every multiprocessor of a large device


@triton.jit
def tile_offsets(
    image, image_stride, channel_stride, cell_stride, cell, channel, VECTOR: tl.constexpr, LAYOUT: tl.constexpr
):
    """Elements [channels,cells] from a map's start; the strides count VECTORs, the one of the layout is 1."""
    if LAYOUT == "planes":
        inner = channel.to(tl.int64)[:, None] * (channel_stride * VECTOR) + cell[None, :]
    elif LAYOUT == "last":
        inner = cell.to(tl.int64)[None, :] * (cell_stride * VECTOR) + channel[:, None]
    else:
        inner = channel.to(tl.int64)[:, None] * channel_stride + cell.to(tl.int64)[None, :] * cell_stride
    return image * (image_stride.to(tl.int64) * VECTOR) + inner


@unspecialised
def imitation_kernel(
    a_ptr,
    b_ptr,
    weights_ptr,
    outside_ptr,
    sums_ptr,
    sums_per_level,
    sums_per_kind,
    first_weight,
    level,
    cells,
    channels,
    blocks,
    a_image,
    a_channel,
    a_cell,
    b_image,
    b_channel,
    b_cell,
    VECTOR: tl.constexpr,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Sums of W (A-B)^2 and R (A-B)^2 over some cells and `blocks` tiles of channels; R: weights outside of boxes.

    They are rows 0 and 1 of [4,L,sums_per_level]. Strides, and the lengths along memory of cells or
    channels, count VECTORs of elements.
    """
    if A_LAYOUT == "planes" or B_LAYOUT == "planes":
        cells = cells * VECTOR
    if A_LAYOUT == "last" or B_LAYOUT == "last":
        channels = channels * VECTOR
    image = tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    begin = tl.program_id(1) * blocks * BLOCK_C
    end = tl.minimum(begin + blocks * BLOCK_C, channels)

    squares = tl.zeros((BLOCK_C, BLOCK_X), tl.float32)
    for first in range(begin, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[:, None] & (x < cells)[None, :]
        a_place = tile_offsets(image, a_image, a_channel, a_cell, x, c, VECTOR, A_LAYOUT)
        b_place = tile_offsets(image, b_image, b_channel, b_cell, x, c, VECTOR, B_LAYOUT)
        a = tl.load(a_ptr + a_place, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + b_place, mask=inside, other=0.0).to(tl.float32)
        squares += (a - b) * (a - b)
    square = tl.sum(squares, 0)
    weight = tl.load(weights_ptr + first_weight + image * cells + x, mask=x < cells, other=0.0)
    outside = tl.load(outside_ptr + first_weight + image * cells + x, mask=x < cells, other=0.0)
    program = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    sums = sums_ptr + level * sums_per_level + program
    tl.store(sums, tl.sum(weight * square, 0))
    tl.store(sums + sums_per_kind, tl.sum(outside * square, 0))


@unspecialised
def imitation_backward_kernel(
    a_ptr,
    b_ptr,
    weights_ptr,
    outside_ptr,
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
    a_channel,
    a_cell,
    b_image,
    b_channel,
    b_cell,
    a_gradient_image,
    a_gradient_channel,
    a_gradient_cell,
    b_gradient_image,
    b_gradient_channel,
    b_gradient_cell,
    VECTOR: tl.constexpr,
    A_LAYOUT: tl.constexpr,
    B_LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Gradient 2 (foreground W + background R) (A-B) of A and its negative of B, those that are needed.

    foreground, background [L]: gradients of the sums. Lengths as in `imitation_kernel`.
    """
    if A_LAYOUT == "planes" or B_LAYOUT == "planes":
        cells = cells * VECTOR
    if A_LAYOUT == "last" or B_LAYOUT == "last":
        channels = channels * VECTOR
    image = tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    begin = tl.program_id(1) * blocks * BLOCK_C
    end = tl.minimum(begin + blocks * BLOCK_C, channels)
    weight = tl.load(weights_ptr + first_weight + image * cells + x, mask=x < cells, other=0.0)
    outside = tl.load(outside_ptr + first_weight + image * cells + x, mask=x < cells, other=0.0)
    slope = 2.0 * (tl.load(foreground_ptr + level) * weight + tl.load(background_ptr + level) * outside)

    for first in range(begin, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[:, None] & (x < cells)[None, :]
        a_place = tile_offsets(image, a_image, a_channel, a_cell, x, c, VECTOR, A_LAYOUT)
        b_place = tile_offsets(image, b_image, b_channel, b_cell, x, c, VECTOR, B_LAYOUT)
        a = tl.load(a_ptr + a_place, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + b_place, mask=inside, other=0.0).to(tl.float32)
        gradient = slope[None, :] * (a - b)
        a_target = a_gradient_ptr + tile_offsets(
            image, a_gradient_image, a_gradient_channel, a_gradient_cell, x, c, VECTOR, A_LAYOUT
        )
        b_target = b_gradient_ptr + tile_offsets(
            image, b_gradient_image, b_gradient_channel, b_gradient_cell, x, c, VECTOR, B_LAYOUT
        )
        tl.store(a_target, gradient.to(a_gradient_ptr.dtype.element_ty), mask=inside & (need_a != 0))
        tl.store(b_target, (-gradient).to(b_gradient_ptr.dtype.element_ty), mask=inside & (need_b != 0))


class Map(NamedTuple):
    """A map [N,C,H,W] whose cells have one stride, and its strides in elements."""

    tensor: Tensor
    image: int
    channel: int
    cell: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Map | None":
        """The map in its place, if its cells have one stride."""
        _, channels, height, width = tensor.shape
        image, channel, row, cell = tensor.stride()
        if width == 1:
            cell = row if height > 1 else channels
        return cls(tensor, image, channel, cell) if height == 1 or row == width * cell else None

    @classmethod
    def ready(cls, tensor: Tensor) -> "Map":
        """The map, copied only where its cells have no one stride or it starts at no multiple of 16 bytes."""
        found = cls.of(tensor) or cls.of(tensor.contiguous())
        return cls.of(found.tensor.clone()) if found.tensor.data_ptr() % 16 else found

    @property
    def kind(self) -> str:
        return TYPES[self.tensor.dtype]

    def layout(self, vector: int) -> str:
        """ "planes" or "last" (channels) where rows of whole vectors lie along memory, else "any"."""
        _, channels, height, width = self.tensor.shape
        if (self.cell == 1 or height * width == 1) and not any(n % vector for n in (height * width, *self[1:3])):
            return "planes"
        if (self.channel == 1 or channels == 1) and not any(n % vector for n in (channels, self.image, self.cell)):
            return "last"
        return "any"


Form = tuple[str, str]  # layout and type of a map


class Plan(NamedTuple):
    """How the maps of one level, in the order of their forms, are cut into programs."""

    maps: list[Map]
    order: list[int]  # of the given maps
    configuration: dict[str, Any]
    grid: tuple[int, int, int]
    lengths: tuple[int, int, int]  # cells, channels, tiles of channels of a program

    @classmethod
    def of(cls, a: Tensor, b: Tensor, *gradients: Tensor) -> "Plan":
        """Plan for two maps, and for their gradients with the same layouts if they are given."""
        maps = [Map.ready(a), Map.ready(b), *(Map.of(g) for g in gradients)]
        vector = _vector(*(m.kind for m in maps[:2]))
        layouts = [m.layout(vector) for m in maps]
        if "any" in layouts or layouts[:2] * (len(maps) // 2) != layouts:
            layouts, vector = ["any", "any"], 1
        forms = [(layout, m.kind) for layout, m in zip(layouts, maps[:2], strict=False)]
        order = sorted(range(2), key=lambda i: forms[i])
        configuration = _configuration(*(forms[i] for i in order))

        images, channels, height, width = a.shape
        cells = height * width
        across, deep = triton.cdiv(cells, configuration["BLOCK_X"]), triton.cdiv(channels, configuration["BLOCK_C"])
        blocks = triton.cdiv(deep, max(1, PROGRAMS_WANTED // (across * images)))
        grid = across, triton.cdiv(deep, blocks), images
        lengths = (
            cells // vector if "planes" in layouts else cells,
            channels // vector if "last" in layouts else channels,
            blocks,
        )
        return cls([maps[i + j] for j in range(0, len(maps), 2) for i in order], order, configuration, grid, lengths)

    def strides(self) -> list[int]:
        """Of all maps, in VECTORs."""
        return [stride // self.configuration["VECTOR"] for m in self.maps for stride in m[1:]]


def _vector(*kinds: str) -> int:
    """Elements of 16 bytes, of the smaller type."""
    return 4 if set(kinds) == {"fp32"} else 8


def _configuration(a: Form, b: Form) -> dict[str, Any]:
    """Tiles of some accesses of 16 bytes a thread and map, along memory; squarer where the layouts differ."""
    half = "fp32" not in (a[1], b[1])
    channels, cells = {
        ("any", "any"): (16, 64),
        ("last", "last"): (64, 64 if half else 32),
        ("last", "planes"): (32, 64),
        ("planes", "planes"): (4, 512),
    }[a[0], b[0]]
    vector = 1 if a[0] == "any" else _vector(a[1], b[1])
    shape = {"BLOCK_C": channels, "BLOCK_X": cells, "num_warps": 4, "num_stages": 1}
    return {"VECTOR": vector, "A_LAYOUT": a[0], "B_LAYOUT": b[0], **shape}


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Four sums [L] and the weights [2, sum of N*H*W], float32; see `gkd_fast.ops.masked_imitation`."""
    shapes = [s.shape for s in student]
    cells = [n * h * w for n, _, h, w in shapes]
    both = student[0].new_empty((2, sum(cells)), dtype=torch.float32)
    weights, outside = both
    with on_device_of(both):
        plans = [Plan.of(s, t) if s.numel() else None for s, t in zip(student, teacher, strict=True)]
        counts = [painting_programs(n, h * w) for n, _, h, w in shapes]
        counts += [plan.grid[0] * plan.grid[1] * plan.grid[2] for plan in plans if plan]
        sums = weights.new_zeros((4, len(shapes), max(counts)))
        boxes, image_index, omega = ready(boxes), ready(image_index), ready(omega.float())
        paint(boxes, image_index, omega, weights, sums, shapes, strides, last=last, base_size=base_size)
        torch.mul(weights <= 0, 1.0 if trust is None else trust, out=outside)
        for level, plan in enumerate(plans):
            if plan:
                imitation_kernel[plan.grid](
                    *(m.tensor for m in plan.maps),
                    weights,
                    outside,
                    sums,
                    sums.stride(1),
                    sums.stride(0),
                    sum(cells[:level]),
                    level,
                    *plan.lengths,
                    *plan.strides(),
                    **plan.configuration,
                )
        foreground, background, weight, empty = (part.sum(1) for part in sums)  # outputs share no memory
    return foreground, background, weight, empty, both


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
    targets = [_target(m, gradient) for m, gradient in zip((student, teacher), gradients, strict=True)]
    plan = Plan.of(student, teacher, *targets)
    imitation_backward_kernel[plan.grid](
        *(m.tensor for m in plan.maps[:2]),
        *weights,
        foreground,
        background,
        *(m.tensor for m in plan.maps[2:]),
        *(int(gradients[i] is not None) for i in plan.order),
        first_weight,
        level,
        *plan.lengths,
        *plan.strides(),
        **plan.configuration,
    )
    for target, gradient in zip(targets, gradients, strict=True):
        if gradient is not None and target is not gradient:
            gradient.copy_(target)


def _target(source: Tensor, gradient: Tensor | None) -> Tensor:
    """Where to write a gradient: new memory if its cells have no one stride; the map itself if it is not written."""
    if gradient is None:
        return Map.ready(source).tensor
    return gradient if Map.of(gradient) else gradient.contiguous()


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    aligned = sorted((layout, kind) for layout in ("last", "planes") for kind in TYPES.values())
    unaligned = sorted(("any", kind) for kind in TYPES.values())
    forms = [pair for group in (aligned, unaligned) for pair in combinations_with_replacement(group, 2)]

    def spec(fn: triton.JITFunction) -> KernelSpec:
        launches = []
        for a, b in forms:
            named = {f"{m}{part}_ptr": f"*{k[1]}" for m, k in (("a", a), ("b", b)) for part in ("", "_gradient")}
            types = {n: named.get(n, "*fp32" if n.endswith("_ptr") else "i32") for n in fn.arg_names}
            launches.append(launch(fn, types, _configuration(a, b)))
        return KernelSpec(fn, launches)

    return {fn.__name__: spec(fn) for fn in (imitation_kernel, imitation_backward_kernel)}


KERNELS = configurations()
