"""Convolutions as matrix products are convolutions, and taken where they pay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.step.launches import Launches
from gkd_fast.training.convolution_product import Window
from gkd_fast.training.mixed_layers import MixedLayers

CASES = {
    "3x3": ((5, 6), 4, (3, 3), 1, 1),
    "3x3 of a stride": ((7, 6), 4, (3, 3), 2, 1),
    "1x1": ((5, 6), 4, (1, 1), 1, 0),
    "1x1 of a stride": ((5, 6), 4, (1, 1), 2, 0),
    "7x7": ((9, 8), 2, (7, 7), 2, 3),
    "not square": ((6, 9), 3, (3, 1), (1, 2), (1, 0)),
    "no padding": ((4, 4), 3, (2, 2), 2, 0),
    "padding beyond the window's half": ((3, 3), 3, (3, 3), 1, 2),
    "rows left over": ((8, 8), 3, (3, 3), 3, 0),
}


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_convolution(case: str, bias: bool, layout: torch.memory_format) -> None:
    sides, channels, size, stride, padding = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sides, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(channels, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    added = torch.randn(channels, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [value for value in (x, weight, added) if value is not None]
    expected = torch.conv2d(x, weight, added, stride, padding)
    found = Window(size, pair(stride), pair(padding)).convolve(x, weight, added)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(expected)
    for own, theirs in zip(
        torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(own, theirs)


def test_gradients_of_channels_last_weights_need_no_copy() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    Window((3, 3), (1, 1), (1, 1)).convolve(torch.randn(1, 4, 4, 4), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


@pytest.mark.parametrize("case", CASES)
def test_is_one_product_without_copies_of_the_weights(case: str) -> None:
    sides, channels, size, stride, padding = CASES[case]
    x = torch.randn(2, 3, *sides).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 3, *size)
    with torch.no_grad(), Launches() as launches:
        Window(size, pair(stride), pair(padding)).convolve(x, weight)
    assert launches.kernels["mm"] == 1
    assert launches.kernels["bmm"] == 0


@pytest.mark.parametrize(
    ("layer", "side", "is_product"),
    [
        (nn.Conv2d(512, 512, 3, padding=1), 4, True),
        (nn.Conv2d(256, 512, 3, padding=1, stride=2), 8, True),
        (nn.Conv2d(256, 512, 1, stride=2), 8, True),
        (nn.Conv2d(128, 128, 3, padding=1), 16, False),
        (nn.Conv2d(64, 64, 3, padding=1), 4, False),
        (nn.Conv2d(8, 48, 1), 32, False),
        (nn.Conv2d(96, 192, 1), 8, True),
        (nn.Conv2d(64, 12, 1), 8, False),
        (nn.Conv2d(64, 256, 1), 32, True),
        (nn.Conv2d(512, 512, 3, padding=2, dilation=2), 4, False),
        (nn.Conv2d(512, 512, 3, padding=1, groups=2), 4, False),
        (nn.Conv2d(512, 512, 3, padding="same"), 4, False),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Conv2d) else "",
)
def test_which_layers_are_products(
    layer: nn.Conv2d, side: int, is_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = []
    convolve = Window.convolve
    monkeypatch.setattr(Window, "convolve", lambda *call: products.append(1) or convolve(*call))
    x = torch.randn(8, layer.in_channels, side, side).to(memory_format=torch.channels_last)
    layer = layer.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
        with MixedLayers(torch.device("cpu"), torch.bfloat16):
            found = layer(x)
    assert bool(products) is is_product
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0.016, atol=0.02)


def test_is_left_alone_without_autocast_and_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "convolve", lambda *call: pytest.fail("a product"))
    layer, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(1, 512, 4, 4)
    with MixedLayers(torch.device("cpu"), torch.bfloat16):
        assert layer(x).dtype == torch.float32
    meta, seen = layer.to("meta"), x.to("meta")
    with torch.autocast("cuda", dtype=torch.bfloat16), MixedLayers(torch.device("cuda"), torch.bfloat16):
        meta(seen)


def test_a_frozen_weight_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(512, 512, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 512, 4, 4)
    weights = []
    convolve = Window.convolve
    monkeypatch.setattr(Window, "convolve", lambda *call: weights.append(call[2]) or convolve(*call))
    with torch.autocast("cpu", dtype=torch.bfloat16), MixedLayers(torch.device("cpu"), torch.bfloat16):
        layer(x), layer(x)
        layer.weight.mul_(2)
        layer(x)
    assert weights[0] is weights[1]
    assert weights[0].dtype == torch.bfloat16
    torch.testing.assert_close(weights[2], 2 * weights[0])
