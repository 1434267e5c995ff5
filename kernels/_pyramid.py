"""Maps of all levels in one launch: programs are numbered level after level, and each finds its level's arguments."""

import functools
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST = 5  # levels of a launch, a kernel's parameters name each; detectors have no more
FORMATS = {"planes": torch.contiguous_format, "last": torch.channels_last}
NEVER = 2**31 - 1  # programs begin there that a launch has none of


@triton.jit
def pick(slot, first, second, third, fourth, fifth):
    """The argument of one of the launch's levels."""
    behind = tl.where(slot == 2, third, tl.where(slot == 3, fourth, fifth))
    return tl.where(slot == 0, first, tl.where(slot == 1, second, behind))


@triton.jit
def slot_of(program, second, third, fourth, fifth):
    """The level that a program belongs to, by where the programs of the others begin."""
    behind = (program >= third).to(tl.int32) + (program >= fourth).to(tl.int32) + (program >= fifth).to(tl.int32)
    return (program >= second).to(tl.int32) + behind


@triton.jit
def cells_before(slot, first, second, third, fourth):
    """Cells of one image on the launch's levels before one."""
    behind = tl.where(slot > 2, third, 0) + tl.where(slot > 3, fourth, 0)
    return tl.where(slot > 0, first, 0) + tl.where(slot > 1, second, 0) + behind


@triton.jit
def tile_offsets(image, cells, channels, cell, channel, LAYOUT: tl.constexpr):
    """Elements [channels,cells] of a map without gaps, from its start."""
    start = image * channels * cells
    if LAYOUT == "planes":
        return start + channel.to(tl.int64)[:, None] * cells + cell[None, :]
    return start + cell.to(tl.int64)[None, :] * channels + channel[:, None]


@triton.jit
def is_whole(cells, channels, UNIT: tl.constexpr, A_LAYOUT: tl.constexpr, B_LAYOUT: tl.constexpr):
    """Whether the lengths along the memory of two maps are multiples of UNIT."""
    rest = 0
    if A_LAYOUT == "planes" or B_LAYOUT == "planes":
        rest += cells % UNIT
    if A_LAYOUT == "last" or B_LAYOUT == "last":
        rest += channels % UNIT
    return rest == 0


@triton.jit
def whole_lengths(cells, channels, UNIT: tl.constexpr, A_LAYOUT: tl.constexpr, B_LAYOUT: tl.constexpr):
    """The same lengths, in a form that shows the compiler that they are multiples of UNIT."""
    if A_LAYOUT == "planes" or B_LAYOUT == "planes":
        cells = cells // UNIT * UNIT
    if A_LAYOUT == "last" or B_LAYOUT == "last":
        channels = channels // UNIT * UNIT
    return cells, channels


class Pyramid(NamedTuple):
    """L maps [N,C,H_l,W_l] without gaps, from multiples of 16 bytes on: each "planes" (NCHW) or channels "last"."""

    maps: Sequence[Tensor]
    layouts: tuple[str, ...]

    def of_launch(self, levels: range) -> list[Tensor]:
        """The maps of the levels of one launch, as a kernel takes them."""
        return slots(self.maps[levels.start : levels.stop])


def unit_of(dtype: torch.dtype) -> int:
    """Elements of 16 bytes, one access."""
    return 16 // dtype.itemsize


def shapes_of(features: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    """Shapes [N,C,H,W] of maps; what depends on nothing else is worked out once (`planned`)."""
    return tuple([feature.shape for feature in features])


# A training run has a few sizes of batches, whose launches are alike in every step.
planned = functools.lru_cache(maxsize=256)


def arranged(features: Sequence[Tensor]) -> Pyramid:
    """The maps, copied only where they have gaps or start elsewhere; of one layout where they can be."""
    preferred, other = FORMATS if features[0].is_contiguous() else reversed(FORMATS)
    maps, layouts = [], []
    for feature in features:
        if feature.is_contiguous(memory_format=FORMATS[preferred]):
            layout = preferred
        elif feature.is_contiguous(memory_format=FORMATS[other]):
            layout = other
        else:
            feature, layout = feature.contiguous(), "planes"
        maps.append(feature.clone() if feature.data_ptr() % 16 else feature)
        layouts.append(layout)
    return Pyramid(maps, tuple(layouts))


def runs(*layouts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], range]]:
    """Levels that follow each other with the same layouts in all pyramids, at most MOST of them, with these."""
    first = 0
    for form, group in groupby(zip(*layouts, strict=True)):
        past = first + len(list(group))
        yield from ((form, range(start, min(start + MOST, past))) for start in range(first, past, MOST))
        first = past


def slots(values: Sequence, filling: object = None) -> list:
    """One for each of MOST levels: those of the launch, then `filling`, or the last one."""
    return [*values, *(MOST - len(values)) * [values[-1] if filling is None else filling]]


def starts_of(counts: Sequence[int]) -> tuple[int, list[int]]:
    """How many programs there are, and where those of the second to the last of MOST levels begin."""
    *starts, total = accumulate(counts)
    return total, slots([0, *starts], NEVER)[1:]
