"""Convolutions of small maps as matrix products, for CPUs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gkd_fast.training.linear_product import linear_product

# Measured by `python -m bench.convolutions`.
_POINTWISE_WEIGHTS = 2**14
_POINTWISE_CELLS = 2**11
_POINTWISE_CHANNELS = 64
_LEAST_WEIGHTS = 2**17


class Window(NamedTuple):
    """What a convolution sees of its input for one cell of its output; (height, width) each."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def output(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output for an input [N,C,H,W]."""
        sides = zip(x.shape[2:], self.size, self.stride, self.padding, strict=True)
        height, width = ((side + 2 * padding - size) // stride + 1 for side, size, stride, padding in sides)
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether every cell of the output sees one cell, and each its own."""
        return self.size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def is_faster_as_product(self, x: Tensor, weight: Tensor) -> bool:
        """Whether `convolve` takes less time on a CPU than oneDNN's convolution, which reorders the weights.

        Args:
            x: [N,C,H,W].
            weight: [O,C,h,w].
        """
        height, width = self.output(x)
        cells = len(x) * height * width
        if self.is_pointwise:
            few_cells = cells <= _POINTWISE_CELLS or min(weight.shape[:2]) >= _POINTWISE_CHANNELS
            return few_cells and weight.numel() >= _POINTWISE_WEIGHTS
        return weight.numel() >= _LEAST_WEIGHTS and cells <= 2 * len(weight)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution [N,O,H',W'], channels last, of x [N,C,H,W] by weight [O,C,h,w] and bias [O]."""
        cells = x.permute(0, 2, 3, 1)
        if not self.is_pointwise:
            cells = _Patches.apply(cells, self, self.output(x))
        # As rows: of cells that do not adjoin there would be a product each, and copies of the weights for it.
        rows = linear_product(cells.flatten(0, 2), weight.permute(0, 2, 3, 1).flatten(1), bias)
        return rows.unflatten(0, cells.shape[:3]).permute(0, 3, 1, 2)


class _Patches(torch.autograd.Function):
    """What every cell of the output sees: [N,H,W,C] -> [N,H',W',h*w*C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, output: tuple[int, int]) -> Tensor:
        ctx.window, ctx.output, ctx.shape = window, output, x.shape
        (high, wide), (down, right) = window.padding, window.stride
        padded = functional.pad(x, (0, 0, wide, wide, high, high))
        patches = padded.unfold(1, window.size[0], down).unfold(2, window.size[1], right)
        return patches.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        window, (height, width) = ctx.window, ctx.output
        images, rows, columns, channels = ctx.shape
        (high, wide), (down, right) = window.padding, window.stride
        parts = gradient.unflatten(3, (*window.size, channels))
        padded = gradient.new_zeros(images, rows + 2 * high, columns + 2 * wide, channels)
        for i in range(window.size[0]):
            for j in range(window.size[1]):
                seen = padded[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
                seen += parts[:, :, :, i, j]
        return padded[:, high : high + rows, wide : wide + columns], None, None
