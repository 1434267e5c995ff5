"""Depthwise convolutions beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd_fast import ops
from gkd_fast.ops.depthwise_convolution import _backward, _forward, depthwise_convolution

# Channels, height and width, side of the window, stride, padding.
CASES = {
    "as MobileNetV2's": (48, (16, 16), 3, 2, 1),
    "odd sides": (7, (9, 12), 3, 2, 1),
    "no stride": (33, (6, 5), 3, 1, 1),
    "5 x 5": (20, (11, 8), 5, 2, 2),
    "7 x 7": (70, (9, 9), 7, 1, 3),
    "no padding": (16, (8, 7), 3, 1, 0),
    "rows and columns left over": (5, (10, 11), 3, 3, 0),
    "a stride beyond the window": (9, (17, 19), 3, 5, 0),
    "one row of windows": (4, (3, 9), 3, 2, 0),
    "padding beyond the window's half": (3, (4, 4), 3, 2, 2),
    "one cell": (2, (1, 1), 3, 1, 1),
}


def inputs(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
    channels, sides, side, stride, padding = CASES[case]
    g = torch.Generator().manual_seed(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    maps = torch.randn(2, channels, *sides, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, side, side, generator=g).to(exact)
    out = [(s + 2 * padding - side) // stride + 1 for s in sides]
    return maps, weight, torch.randn(2, channels, *out, generator=g).to(dtype), {"stride": stride, "padding": padding}


def run(case: str, dtype: torch.dtype, backend: str, exact: bool = False) -> list[Tensor]:
    """Result and gradients; in float64 where they are to be exact."""
    maps, weight, gradient, settings = inputs(case, dtype)
    leaves = [(t.double() if exact else t).requires_grad_() for t in (maps, weight)]
    with ops.use_backend(backend):
        out = depthwise_convolution(*leaves, **settings)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errs_no_more_than_torchs_in_float32(dtype: torch.dtype, case: str) -> None:
    truth = run(case, dtype, "reference", exact=True)
    found, theirs = run(case, dtype, "cpu"), run(case, dtype, "reference")
    rounding = 1e-13 if dtype == torch.float64 else 1e-6
    for mine, other, exact in zip(found, theirs, truth, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        error, allowed = ((t.double() - exact).norm() for t in (mine, other))
        assert error <= 1.1 * allowed + rounding * exact.norm()
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_other_layouts_windows_and_devices_are_torchs() -> None:
    weight = torch.randn(4, 1, 3, 3)
    for maps in (torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 14)[..., ::2]):
        want = torch.conv2d(maps, weight, None, 2, 1, 1, 4)
        torch.testing.assert_close(depthwise_convolution(maps, weight, stride=2, padding=1), want)
    even, maps = torch.randn(4, 1, 2, 2), torch.randn(1, 4, 6, 6).to(memory_format=torch.channels_last)
    torch.testing.assert_close(depthwise_convolution(maps, even), torch.conv2d(maps, even, groups=4))
    on_meta = depthwise_convolution(maps.to("meta"), weight.to("meta"), stride=2, padding=1)
    assert on_meta.shape == (1, 4, 3, 3)


def test_threads_do_not_change_results() -> None:
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run("7 x 7", torch.bfloat16, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", ["odd sides", "5 x 5"])
def test_raw_operators(case: str) -> None:
    maps, weight, gradient, settings = inputs(case, torch.float32)
    with ops.use_backend("cpu"):
        depthwise_convolution(maps, weight, **settings)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(_forward, (maps, weight, *settings.values()), test_utils=tests)
    torch.library.opcheck(_backward, (gradient, maps, weight, *settings.values()), test_utils=tests)


def test_wrong_arguments() -> None:
    maps, weight = torch.randn(2, 4, 6, 6), torch.randn(4, 1, 3, 3)
    for call, message in (
        (lambda: depthwise_convolution(maps[0], weight), r"maps: expected shape \[N,C,H,W\]"),
        (lambda: depthwise_convolution(maps, weight[1:]), "weight: expected C = 4, got 3"),
        (lambda: depthwise_convolution(maps, weight.expand(4, 2, 3, 3)), "channels of one = 1, got 2"),
        (lambda: depthwise_convolution(maps, weight[..., :2]), "weight: expected K = 2, got 3"),
        (lambda: depthwise_convolution(maps, weight, stride=0), "expected at least 1 and 0, got 0 and 0"),
        (lambda: depthwise_convolution(maps[..., :2], weight), "expected a window within the padded maps"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"weight: expected torch.float32, got torch.bfloat16"):
        depthwise_convolution(maps, weight.bfloat16())
