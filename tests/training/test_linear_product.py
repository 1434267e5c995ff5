"""Linear layers of many weights: torch's numbers, another way to the gradient of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gkd_fast.training import linear_product as module
from gkd_fast.training.linear_product import linear_product
from gkd_fast.training.mixed_layers import MixedLayers

ROWS, INPUTS, OUTPUTS = 24, 1536, 768  # more than 2**20 weights


def drawn(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,))
    tensors = [torch.randn(shape, generator=generator).div(8).to(dtype).requires_grad_() for shape in shapes]
    return [*tensors[:2], tensors[2] if bias else None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_are_torchs(dtype: torch.dtype, bias: bool) -> None:
    found = []
    for product in (linear_product, functional.linear):
        given = drawn(dtype, bias=bias)
        y = product(*given)
        y.square().mean().backward()
        found.append([y, *(tensor.grad for tensor in given if tensor is not None)])
    for own, torchs in zip(*found, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own, torchs)


def test_only_the_gradients_that_are_needed() -> None:
    for frozen in range(3):
        given = drawn()
        given[frozen].requires_grad_(False)
        linear_product(*given).sum().backward()
        assert [tensor.grad is not None for tensor in given] == [i != frozen for i in range(3)]


def test_autocast_casts_what_is_not_yet_cast() -> None:
    given = drawn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear_product(*given)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(tensor.grad.dtype == torch.float32 for tensor in given)


def test_layers_under_autocast_take_it_for_many_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    monkeypatch.setattr(
        module._Linear, "apply", lambda rows, weight, bias: seen.append(weight.shape) or functional.linear(rows, weight)
    )
    x = torch.randn(4, INPUTS)
    layers = [torch.nn.Linear(INPUTS, outputs) for outputs in (OUTPUTS, 16)]
    with torch.autocast("cpu", dtype=torch.bfloat16), MixedLayers(torch.device("cpu"), torch.bfloat16):
        for layer in layers:
            layer(x)
        layers[0](x[None])
        with torch.no_grad():
            layers[0](x)
    assert seen == [(OUTPUTS, INPUTS)]
