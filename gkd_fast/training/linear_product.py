"""Linear layers of many weights, for CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Measured by `python -m bench.convolutions`.
_LEAST_WEIGHTS = 2**20


def is_faster_with_copy(weight: Tensor) -> bool:
    """Whether the weight's gradient comes sooner with a copy of the gradient of the rows."""
    return weight.numel() >= _LEAST_WEIGHTS


def linear_product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of rows [N,C], weight [O,C] and bias [O], whose weight's gradient comes sooner.

    That gradient is the product of the transposed gradient [O,N] with the rows. oneDNN takes up to 1.8 times as long
    for it where the first factor is a view instead of a copy.
    """
    if not (is_faster_with_copy(weight) and torch.is_grad_enabled()):
        return functional.linear(rows, weight, bias)
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    found: Tensor = _Linear.apply(rows, weight, bias)
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return functional.linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            gradient @ weight if of_rows else None,
            gradient.t().contiguous() @ rows if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )
