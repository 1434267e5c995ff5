"""Batch normalisation in training, with the activation behind it."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


def batch_norm(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    """min(max(w (x - mean) / sqrt(variance + eps) + b, low), high) by the batch's own statistics.

    That is torch's batch normalisation in training (Ioffe and Szegedy 2015, algorithm 1), with ReLU or ReLU6 behind it
    where there are limits. The CPU has a kernel for maps in channels_last, in which neither pass stores what lies
    between the two; all else, and a GPU, takes torch's.

    Args:
        maps: [N,C,H,W], float32, float64, bfloat16 or float16, any memory format.
        weight, bias: float32 [C] (float64 if the maps are).
        running_mean, running_var: as the weight, or None; moved towards the batch's mean and unbiased variance.
        momentum: by this share of the difference.
        eps: added to the variance.
        low, high: the gradient ends there.

    Returns:
        Of the shape, dtype and memory format of the maps. Differentiable in maps, weight and bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or one value a channel.
    """
    check_tensor("maps", maps, "[N,C,H,W]")
    exact = accumulation_dtype(maps.dtype)
    named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    given = {name: value for name, value in named.items() if value is not None}
    for name, value in given.items():
        check_tensor(name, value, "[C]", exact)
        check_size(name, "C", value.shape[0], maps.shape[1])
    check_same_device(maps=maps, **given)
    if maps.numel() <= maps.shape[1]:
        raise ValueError(f"maps: expected more than one value a channel, got {tuple(maps.shape)}")
    running = running_mean, running_var
    fits = maps.is_contiguous(memory_format=torch.channels_last) and exact == torch.float32
    if backend_for("batch_norm", maps.device, ("cpu", "reference") if fits else ("reference",)) == "cpu":
        return _BatchNorm.apply(maps, weight, bias, *running, momentum, eps, low, high)
    normalised = torch.batch_norm(maps, weight, bias, *running, True, momentum, eps, False)
    return normalised if (low, high) == (-math.inf, math.inf) else torch.nn.functional.hardtanh(normalised, low, high)


def _fake(maps: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(maps), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _fake_backward(gradient: Tensor, maps: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(maps), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _like(maps: Tensor) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.channels_last)


_forward = define(
    "batch_norm(Tensor maps, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " float momentum, float eps, float low, float high) -> (Tensor, Tensor, Tensor)",
    _fake,
)
_backward = define(
    "batch_norm_backward(Tensor gradient, Tensor maps, Tensor weight, Tensor bias, Tensor mean, Tensor inverse,"
    " float low, float high) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, *settings: Any) -> Tensor:
        normalised, mean, inverse = _forward(maps, weight, bias, *settings)
        ctx.save_for_backward(maps, weight, bias, mean, inverse)
        ctx.limits = settings[-2:]
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, *others = ctx.saved_tensors
        dense = gradient.to(maps.dtype).contiguous(memory_format=torch.channels_last)
        found = _backward(dense, maps, *others, *ctx.limits)
        needed = ctx.needs_input_grad[:3]
        return *(g if need else None for g, need in zip(found, needed, strict=True)), *(None,) * 6
