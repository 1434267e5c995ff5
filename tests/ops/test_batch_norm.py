"""Batch normalisation with its activation beside torch's own, in float64 and in the same dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast import ops
from gkd_fast.ops.batch_norm import _backward, _forward, batch_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIMITS = {"none": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
SHAPES = ((2, 1, 5, 7), (3, 3, 9, 11), (8, 8, 33, 31), (2, 48, 40, 24), (1, 100, 6, 5), (2, 513, 3, 2), (4, 16, 1, 1))
Norm = Callable[..., Tensor]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, offset: float = 1.0) -> list[Tensor]:
    """Maps in channels_last, weight, bias, and a gradient of the result."""
    g = torch.Generator().manual_seed(0)
    maps, gradient = (
        torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    weight, bias = 3 * (torch.rand(shape[1], generator=g) + 0.5), torch.randn(shape[1], generator=g)
    return [(maps + offset).to(dtype), weight, bias, gradient]


def run(norm: Norm, case: list[Tensor], limits: tuple[float, float], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Result, running statistics and gradients."""
    maps, weight, bias, gradient = case
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [maps.to(dtype or maps.dtype), weight.to(exact), bias.to(exact)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    running = torch.zeros_like(leaves[1]).detach(), torch.ones_like(leaves[1]).detach()
    out = norm(leaves[0], *running, *leaves[1:], limits)
    return [out.detach(), *running, *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


def ours(
    maps: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, limits: tuple[float, float]
) -> Tensor:
    low, high = limits
    return batch_norm(maps, weight, bias, mean, variance, momentum=0.3, eps=1e-3, low=low, high=high)


def torchs(
    maps: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, limits: tuple[float, float]
) -> Tensor:
    return F.hardtanh(F.batch_norm(maps, mean, variance, weight, bias, True, 0.3, 1e-3), *limits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limits", LIMITS)
def test_errs_no_more_than_torchs(limits: str, dtype: torch.dtype, shape: tuple[int, ...], backend: str) -> None:
    case = inputs(shape, dtype)
    truth = run(torchs, case, LIMITS[limits], torch.float64)
    found, theirs = (run(norm, case, LIMITS[limits]) for norm in (ours, torchs))
    for mine, other, exact in zip(found, theirs, truth, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        error, allowed = ((t.double() - exact).norm() / exact.norm().clamp(min=1e-3) for t in (mine, other))
        # Sums of another order differ by a few roundings either way.
        assert error <= 1.5 * allowed + 1e-6
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[3].is_contiguous(memory_format=torch.channels_last)


def test_deviations_far_smaller_than_the_mean_are_kept() -> None:
    case = inputs((4, 24, 20, 30), offset=1000.0)
    truth, found = run(torchs, case, LIMITS["none"], torch.float64), run(ours, case, LIMITS["none"])
    torch.testing.assert_close(found[2].double(), truth[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0].double(), truth[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("limits", LIMITS)
def test_what_is_no_number_stays_in_its_channel(limits: str) -> None:
    maps, weight, bias, gradient = inputs((2, 20, 9, 9))
    maps[1, 3, 4, 4], maps[0, 11, 0, 0] = float("nan"), float("inf")
    spoilt = torch.zeros(20, dtype=torch.bool)
    spoilt[[3, 11]] = True
    found = run(ours, [maps, weight, bias, gradient], LIMITS[limits])
    for tensor in found:
        of_channel = tensor.movedim(1, 0) if tensor.dim() == 4 else tensor
        assert of_channel[~spoilt].isfinite().all()
    assert found[0][:, 3].isnan().all()
    assert found[3][:, 3].isnan().all()


def test_a_constant_channel_is_its_bias() -> None:
    maps, weight, bias, gradient = inputs((2, 16, 5, 5))
    maps[:, 4] = 7.0
    out, _, variance, *gradients = run(ours, [maps, weight, bias, gradient], LIMITS["none"])
    torch.testing.assert_close(out[:, 4], bias[4].expand(2, 5, 5))
    assert variance[4] == pytest.approx(0.7)
    assert all(found.isfinite().all() for found in gradients)


def test_other_layouts_are_torchs() -> None:
    maps, *others = inputs((2, 5, 6, 7))
    for laid_out in (maps.contiguous(), maps.repeat_interleave(2, 3)[..., ::2]):
        case = [laid_out, *others]
        for mine, theirs in zip(run(ours, case, LIMITS["relu"]), run(torchs, case, LIMITS["relu"]), strict=True):
            assert torch.equal(mine, theirs)


def test_gradient_of_another_layout() -> None:
    *case, gradient = inputs((2, 5, 6, 7))
    found, want = (run(ours, [*case, g], LIMITS["relu6"]) for g in (gradient.contiguous(), gradient))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_threads_do_not_change_results() -> None:
    case, found, before = inputs((8, 24, 40, 40), torch.bfloat16), [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(ours, case, LIMITS["relu6"]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_what_is_needed_gets_a_gradient() -> None:
    maps, weight, bias, _ = inputs((2, 8, 4, 4))
    weight.requires_grad_()
    out = batch_norm(maps, weight, bias)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    assert gradient.shape == (8,)
    assert not batch_norm(maps, weight.detach(), bias).requires_grad


def test_raw_operators() -> None:
    maps, weight, bias, gradient = inputs((2, 8, 4, 4))
    with ops.use_backend("cpu"):
        batch_norm(maps, weight, bias)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    settings = (bias.clone(), weight.clone(), 0.1, 1e-5, 0.0, 6.0)
    torch.library.opcheck(_forward, (maps, weight, bias, *settings), test_utils=tests)
    _, mean, inverse = _forward(maps, weight, bias, None, None, *settings[2:])
    torch.library.opcheck(_backward, (gradient, maps, weight, bias, mean, inverse, 0.0, 6.0), test_utils=tests)


def test_wrong_arguments() -> None:
    maps, weight, bias, _ = inputs((2, 8, 4, 4))
    for call, message in (
        (lambda: batch_norm(maps[0], weight, bias), r"maps: expected shape \[N,C,H,W\]"),
        (lambda: batch_norm(maps, weight[1:], bias), "weight: expected C = 8, got 7"),
        (lambda: batch_norm(maps, weight, bias, bias[:3]), "running_mean: expected C = 8, got 3"),
        (lambda: batch_norm(maps[:1, :, :1, :1], weight, bias), "maps: expected more than one value a channel"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    wrong: Any = weight.bfloat16()
    with pytest.raises(TypeError, match=r"weight: expected torch.float32, got torch.bfloat16"):
        batch_norm(maps, wrong, bias)
