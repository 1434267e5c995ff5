"""Depthwise convolutions, whose channels do not meet."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define
from gkd_fast.ops._windows import new_windows

_SIDES = (3, 5, 7)


def depthwise_convolution(maps: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Each channel by a window of its own, as torch's `conv2d` with as many groups as channels.

    The CPU has a kernel for maps in channels_last and windows of 3, 5 and 7 cells a side; the backward pass of oneDNN's
    takes 10 to 100 times as long in half types. All else, and a GPU, takes torch's.

    Args:
        maps: [N,C,H,W], float32, float64, bfloat16 or float16, any memory format.
        weight: float32 [C,1,K,K] (float64 if the maps are).
        stride: in cells, of both directions.
        padding: cells of zeros on each side.

    Returns:
        [N,C,H',W'] in the dtype of the maps. Differentiable in maps and weight.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a window larger than the maps.
    """
    check_tensor("maps", maps, "[N,C,H,W]")
    check_tensor("weight", weight, "[C,1,K,K]", accumulation_dtype(maps.dtype))
    for name, axis, expected in (("C", 0, maps.shape[1]), ("channels of one", 1, 1), ("K", 2, weight.shape[3])):
        check_size("weight", name, weight.shape[axis], expected)
    check_same_device(maps=maps, weight=weight)
    if stride < 1 or padding < 0:
        raise ValueError(f"stride, padding: expected at least 1 and 0, got {stride} and {padding}")
    if min(maps.shape[2:]) + 2 * padding < weight.shape[2]:
        raise ValueError(f"weight: expected a window within the padded maps, got {tuple(weight.shape[2:])}")
    fits = weight.shape[2] in _SIDES and maps.is_contiguous(memory_format=torch.channels_last)
    if backend_for("depthwise_convolution", maps.device, ("cpu", "reference") if fits else ("reference",)) == "cpu":
        return _Convolution.apply(maps, weight, stride, padding)
    exact = torch.conv2d(maps.to(weight.dtype), weight, None, stride, padding, 1, len(weight))
    return exact.to(maps.dtype)


def _fake(maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return new_windows(maps, weight.shape[2], stride, padding)


def _fake_backward(gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(maps, memory_format=torch.channels_last), weight.new_empty(weight.shape)


_forward = define("depthwise_convolution(Tensor maps, Tensor weight, int stride, int padding) -> Tensor", _fake)
_backward = define(
    "depthwise_convolution_backward(Tensor gradient, Tensor maps, Tensor weight, int stride, int padding)"
    " -> (Tensor, Tensor)",
    _fake_backward,
)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride, ctx.padding = stride, padding
        return _forward(maps, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        dense = gradient.to(maps.dtype).contiguous(memory_format=torch.channels_last)
        return *_backward(dense, maps, weight, ctx.stride, ctx.padding), None, None
