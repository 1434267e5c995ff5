"""The terms of the distillation loss: what its operators have summed, divided, weighted and added up over levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define, implement

TERMS = 4


def loss_terms(
    discrepancy: Tensor | None,
    squares: Tensor,
    divergence: Tensor | None,
    counts: Tensor,
    *,
    weights: Sequence[float],
    least: float,
    kappa: Tensor | float = 1.0,
    variances: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The weighted terms of the loss (paper, overall objective), in one launch instead of one for each operation.

    With the weights w and the attenuation kappa, sums over the levels l:

        global     = kappa w_0 sum_l discrepancy_l
        foreground = kappa w_1 sum_l squares_0l / (max(counts_0l, least) variances_l)
        background = kappa w_2 sum_l squares_1l / (max(counts_1l, least) variances_l)
        soft       = w_3 divergence / max(rows, 1)

    Args:
        discrepancy: [L]; None: 0.
        squares: [2,L], under the boxes and outside of them.
        divergence: scalar; None: 0.
        counts: [2,L], what squares are the sums of; no gradient flows into them.
        weights: w, four numbers.
        least: positive, below which no count divides.
        kappa: scalar; no gradient flows into it.
        variances: [L], without gradient; None: 1.
        rows: scalar, without gradient; the number of rows of the divergence, given with it.

    Returns:
        The four terms, scalars; differentiable in `discrepancy`, `squares` and `divergence`. They and all tensors are
        float32 or float64.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    given = _check(discrepancy, squares, divergence, counts, kappa, variances, rows, weights, least)
    inputs = discrepancy, squares, divergence, counts, variances, rows
    double = accumulation_dtype(*[tensor.dtype for tensor in given]) == torch.float64
    kernels = ("cpu",) if double else ("cpu", "triton")
    backend = backend_for("loss_terms", squares.device, kernels)
    if backend != "triton":
        return reference.loss_terms(*inputs, kappa, weights, least)
    attenuation = kappa if isinstance(kappa, Tensor) else None
    factor = 1.0 if isinstance(kappa, Tensor) else kappa
    weights = [*(float(factor * weight) for weight in weights[:-1]), float(weights[-1])]
    return _Terms.apply(*inputs, attenuation, weights, float(least), backend).unbind()


def _fake(
    discrepancy: Tensor | None,
    squares: Tensor,
    divergence: Tensor | None,
    counts: Tensor,
    variances: Tensor | None,
    rows: Tensor | None,
    kappa: Tensor | None,
    weights: list[float],
    least: float,
) -> Tensor:
    return squares.new_empty(TERMS)


def _fake_backward(
    gradient: Tensor,
    counts: Tensor,
    variances: Tensor | None,
    rows: Tensor | None,
    kappa: Tensor | None,
    weights: list[float],
    least: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return gradient.new_empty(counts.shape[1]), torch.empty_like(counts), gradient.new_empty(())


_FIXED = "Tensor counts, Tensor? variances, Tensor? rows, Tensor? kappa, float[] weights, float least"
_forward = define(f"loss_terms(Tensor? discrepancy, Tensor squares, Tensor? divergence, {_FIXED}) -> Tensor", _fake)
_backward = define(f"loss_terms_backward(Tensor gradient, {_FIXED}) -> (Tensor, Tensor, Tensor)", _fake_backward)


def _on_cpu(
    discrepancy: Tensor | None,
    squares: Tensor,
    divergence: Tensor | None,
    counts: Tensor,
    variances: Tensor | None,
    rows: Tensor | None,
    kappa: Tensor | None,
    weights: list[float],
    least: float,
) -> Tensor:
    fixed = counts, variances, rows, 1.0 if kappa is None else kappa, weights, least
    return torch.stack(reference.loss_terms(discrepancy, squares, divergence, *fixed))


def _backward_on_cpu(
    gradient: Tensor,
    counts: Tensor,
    variances: Tensor | None,
    rows: Tensor | None,
    kappa: Tensor | None,
    weights: list[float],
    least: float,
) -> tuple[Tensor, Tensor, Tensor]:
    whole, foreground, background, soft = (w * g for w, g in zip(weights, gradient.unbind(), strict=True))
    features = torch.stack([foreground, background])
    if kappa is not None:
        whole, features = kappa * whole, kappa * features
    divisors = counts.clamp(min=least) if variances is None else counts.clamp(min=least) * variances
    return (
        whole.expand(counts.shape[1]).contiguous(),
        features[:, None] / divisors,
        soft if rows is None else soft / rows.clamp(min=1),
    )


# Some numbers: there is nothing that C++ would gain.
implement(_forward, _on_cpu, "CPU")
implement(_backward, _backward_on_cpu, "CPU")


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        discrepancy: Tensor | None,
        squares: Tensor,
        divergence: Tensor | None,
        counts: Tensor,
        variances: Tensor | None,
        rows: Tensor | None,
        kappa: Tensor | None,
        weights: list[float],
        least: float,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(counts, variances, rows, kappa)
        ctx.options, ctx.backend = (weights, least), backend
        inputs = discrepancy, squares, divergence, counts, variances, rows, kappa, weights, least
        return implementation(_forward, backend, squares.device)(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        backward = implementation(_backward, ctx.backend, gradient.device)
        gradients = backward(gradient, *ctx.saved_tensors, *ctx.options)
        need = ctx.needs_input_grad[:3]
        return *(g if needed else None for g, needed in zip(gradients, need, strict=True)), *(None for _ in range(7))


def _check(
    discrepancy: Tensor | None,
    squares: Tensor,
    divergence: Tensor | None,
    counts: Tensor,
    kappa: Tensor | float,
    variances: Tensor | None,
    rows: Tensor | None,
    weights: Sequence[float],
    least: float,
) -> list[Tensor]:
    """The tensors that there are."""
    of_levels = {"squares": squares, "counts": counts, "discrepancy": discrepancy, "variances": variances}
    given = {name: tensor for name, tensor in of_levels.items() if tensor is not None}
    for name, tensor in given.items():
        check_tensor(name, tensor, "[2,L]" if name in ("squares", "counts") else "[L]")
        check_size(name, "L", tensor.shape[-1], squares.shape[1])
    for name, tensor in (("squares", squares), ("counts", counts)):
        check_size(name, "first dimension", tensor.shape[0], 2)
    for name, scalar in (("divergence", divergence), ("rows", rows), ("kappa", kappa)):
        if isinstance(scalar, Tensor):
            if scalar.dim():
                raise ValueError(f"{name}: expected a scalar, got shape {tuple(scalar.shape)}")
            given[name] = scalar
    for name, tensor in given.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected torch.float32 or torch.float64, got {tensor.dtype}")
    if (divergence is None) != (rows is None):
        raise ValueError("rows: expected with the divergence alone, got one of them")
    check_same_device(**given)
    check_size("weights", "terms", len(weights), TERMS)
    if not least > 0:
        raise ValueError(f"least: expected a positive number, got {least}")
    return list(given.values())
