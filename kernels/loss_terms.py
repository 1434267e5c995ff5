"""The terms of the loss from the sums of its operators: one program, as there are some numbers of each level."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import on_device_of, ready
from gkd_fast.kernels._spec import KernelSpec, launch, unspecialised


@triton.jit
def level_divisors(counts_ptr, variances_ptr, level, inside, measured, least):
    """What the sums of some levels are divided by."""
    count = tl.load(counts_ptr + level, mask=inside, other=1.0)
    variance = tl.load(variances_ptr + level, mask=inside & (measured != 0), other=1.0)
    return tl.where(count < least, least, count) * variance


@unspecialised
def loss_terms_kernel(
    discrepancy_ptr,
    squares_ptr,
    divergence_ptr,
    counts_ptr,
    variances_ptr,
    rows_ptr,
    kappa_ptr,
    terms_ptr,
    levels,
    discrepancies,
    soft,
    measured,
    attenuated,
    global_weight,
    foreground_weight,
    background_weight,
    soft_weight,
    least,
    BLOCK: tl.constexpr,
):
    """terms [4]; discrepancies: levels, or 0 where there are none. What there is not, is not looked at."""
    whole = tl.zeros((BLOCK,), tl.float32)
    foreground = tl.zeros((BLOCK,), tl.float32)
    background = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, levels, BLOCK):
        level = first + tl.arange(0, BLOCK)
        inside = level < levels
        whole += tl.load(discrepancy_ptr + level, mask=level < discrepancies, other=0.0)
        divisor = level_divisors(counts_ptr, variances_ptr, level, inside, measured, least)
        foreground += tl.load(squares_ptr + level, mask=inside, other=0.0) / divisor
        divisor = level_divisors(counts_ptr + levels, variances_ptr, level, inside, measured, least)
        background += tl.load(squares_ptr + levels + level, mask=inside, other=0.0) / divisor
    kappa = tl.load(kappa_ptr, mask=attenuated != 0, other=1.0)
    tl.store(terms_ptr, kappa * global_weight * tl.sum(whole, 0))
    tl.store(terms_ptr + 1, kappa * foreground_weight * tl.sum(foreground, 0))
    tl.store(terms_ptr + 2, kappa * background_weight * tl.sum(background, 0))
    # Triton's interpreter takes a scalar 0.0 for no `other` at all.
    divergence = tl.where(soft != 0, tl.load(divergence_ptr, mask=soft != 0, other=1.0), 0.0)
    rows = tl.load(rows_ptr, mask=soft != 0, other=1.0)
    tl.store(terms_ptr + 3, soft_weight * divergence / tl.where(rows < 1.0, 1.0, rows))


@unspecialised
def loss_terms_backward_kernel(
    gradient_ptr,
    counts_ptr,
    variances_ptr,
    rows_ptr,
    kappa_ptr,
    discrepancy_gradient_ptr,
    squares_gradient_ptr,
    divergence_gradient_ptr,
    levels,
    soft,
    measured,
    attenuated,
    global_weight,
    foreground_weight,
    background_weight,
    soft_weight,
    least,
    BLOCK: tl.constexpr,
):
    """Gradients of the discrepancy [levels], of squares [2,levels] and of the divergence [], from that of terms [4]."""
    kappa = tl.load(kappa_ptr, mask=attenuated != 0, other=1.0)
    whole = kappa * global_weight * tl.load(gradient_ptr)
    foreground = kappa * foreground_weight * tl.load(gradient_ptr + 1)
    background = kappa * background_weight * tl.load(gradient_ptr + 2)
    for first in range(0, levels, BLOCK):
        level = first + tl.arange(0, BLOCK)
        inside = level < levels
        tl.store(discrepancy_gradient_ptr + level, tl.where(inside, whole, 0.0), mask=inside)
        divisor = level_divisors(counts_ptr, variances_ptr, level, inside, measured, least)
        tl.store(squares_gradient_ptr + level, foreground / divisor, mask=inside)
        divisor = level_divisors(counts_ptr + levels, variances_ptr, level, inside, measured, least)
        tl.store(squares_gradient_ptr + levels + level, background / divisor, mask=inside)
    rows = tl.load(rows_ptr, mask=soft != 0, other=1.0)
    tl.store(divergence_gradient_ptr, soft_weight * tl.load(gradient_ptr + 3) / tl.where(rows < 1.0, 1.0, rows))


CONFIGURATION = {"BLOCK": 16, "num_warps": 1, "num_stages": 1}


def loss_terms(
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
    """Terms [4], float32; see `gkd_fast.ops.loss_terms`."""
    terms = squares.new_empty(4)
    given = discrepancy, squares, divergence, counts, variances, rows, kappa
    with on_device_of(terms):
        tensors = [squares if tensor is None else ready(tensor) for tensor in given]
        levels = squares.shape[1]
        there = 0 if discrepancy is None else levels, *_there(divergence, variances, kappa)
        loss_terms_kernel[(1,)](*tensors, terms, levels, *there, *weights, least, **CONFIGURATION)
    return terms


def loss_terms_backward(
    gradient: Tensor,
    counts: Tensor,
    variances: Tensor | None,
    rows: Tensor | None,
    kappa: Tensor | None,
    weights: list[float],
    least: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the discrepancy [L], of the squares [2,L] and of the divergence []."""
    results = gradient.new_empty(counts.shape[1]), torch.empty_like(counts), gradient.new_empty(())
    with on_device_of(counts):
        counts = ready(counts)
        tensors = [counts if tensor is None else ready(tensor) for tensor in (variances, rows, kappa)]
        there = _there(rows, variances, kappa)
        loss_terms_backward_kernel[(1,)](
            ready(gradient), counts, *tensors, *results, counts.shape[1], *there, *weights, least, **CONFIGURATION
        )
    return results


def _there(*tensors: Tensor | None) -> list[int]:
    return [int(tensor is not None) for tensor in tensors]


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""

    def spec(fn: triton.JITFunction) -> KernelSpec:
        types: dict[str, Any] = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in fn.arg_names}
        types |= {name: "fp32" for name in types if name.endswith("_weight") or name == "least"}
        return KernelSpec(fn, [launch(fn, types, CONFIGURATION)])

    return {fn.__name__: spec(fn) for fn in (loss_terms_kernel, loss_terms_backward_kernel)}


KERNELS = configurations()
