"""How much an operator has to move or compute at least: the numerator of the achieved rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.operators.shapes import Shape


@dataclass(frozen=True)
class Work:
    """Compulsory work of one forward and backward pass: bytes, or operations of matrix products."""

    amount: float
    unit: str  # "B" or "FLOP"
    product_dtype: torch.dtype | None = None  # of the matrix product that the operations are held against


def moved(amount: float) -> Work:
    """Every byte that takes part read once and every byte of a result written once, forward and backward."""
    return Work(amount, "B")


def computed(amount: float, dtype: torch.dtype) -> Work:
    """Multiplications and additions of the matrix products alone."""
    return Work(amount, "FLOP", dtype)


def map_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of one whole pyramid."""
    cells = sum(height * width for height, width in shape.sizes)
    return shape.images * shape.channels * cells * dtype.itemsize


def covered_bytes(
    shape: Shape, dtype: torch.dtype, boxes: Tensor, image_index: Tensor, level: Tensor | None = None
) -> int:
    """Bytes of the cells under at least one box, on every level or on the box's own (level int64 [B])."""
    cells = 0
    for index, (stride, (height, width)) in enumerate(zip(shape.strides, shape.sizes, strict=True)):
        covered = torch.zeros(shape.images, height, width, dtype=torch.bool)
        own = slice(None) if level is None else level == index
        for box, image in zip(boxes[own].tolist(), image_index[own].tolist(), strict=True):
            left, top, right, bottom = (math.floor(c / stride) for c in box)
            covered[image, top : bottom + 1, left : right + 1] = True
        cells += int(covered.sum())
    return cells * shape.channels * dtype.itemsize


def tensor_bytes(tensors: Sequence[Tensor | None]) -> int:
    """Bytes of the elements of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
