"""Maps of all levels in one launch: programs are numbered level after level, and each finds its level's arguments."""

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


class Map(NamedTuple):
    """A map [N,C,H,W] without gaps that starts at a multiple of 16 bytes: "planes" (NCHW) or channels "last"."""

    tensor: Tensor
    layout: str

    @property
    def cells(self) -> int:
        """Of one image."""
        return self.tensor.shape[2] * self.tensor.shape[3]


def unit_of(dtype: torch.dtype) -> int:
    """Elements of 16 bytes, one access."""
    return 16 // dtype.itemsize


def arranged(features: Sequence[Tensor]) -> list[Map]:
    """The maps, copied only where they have gaps or start elsewhere; of one layout where they can be."""
    order = sorted(FORMATS, key=lambda name: not features[0].is_contiguous(memory_format=FORMATS[name]))
    maps = []
    for tensor in features:
        layout = next((name for name in order if tensor.is_contiguous(memory_format=FORMATS[name])), None)
        dense = tensor.contiguous() if layout is None else tensor
        maps.append(Map(dense.clone() if dense.data_ptr() % 16 else dense, layout or "planes"))
    return maps


def runs(*pyramids: Sequence[Map]) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Levels that follow each other with the same layouts, at most MOST of them, with these."""
    layouts = [tuple(m.layout for m in level) for level in zip(*pyramids, strict=True)]
    for form, group in groupby(range(len(layouts)), key=layouts.__getitem__):
        levels = list(group)
        yield from ((form, levels[first : first + MOST]) for first in range(0, len(levels), MOST))


def slots(values: Sequence, filling: object = None) -> list:
    """One for each of MOST levels: those of the launch, then `filling`, or the last one."""
    return [*values, *(MOST - len(values)) * [values[-1] if filling is None else filling]]


def starts_of(counts: Sequence[int]) -> tuple[int, list[int]]:
    """How many programs there are, and where those of the second to the last of MOST levels begin."""
    *starts, total = accumulate(counts)
    return total, slots([0, *starts], NEVER)[1:]
