"""Each mistake that the pretended device is there for is found where it was made, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pretending import pretending
from torch import Tensor


def on_device(*sizes: int) -> Tensor:
    return torch.ones(sizes, device="cuda")


MISTAKES: dict[str, tuple[str, Callable[[], object]]] = {
    "a tensor of the host beside one of the device": ("mixed devices", lambda: on_device(3) * torch.ones(3)),
    "a number of the host joined to the device's": (
        "mixed devices",
        lambda: torch.stack([on_device(), torch.ones(())]),
    ),
    "a number read": ("wait", lambda: on_device(3).sum().item()),
    "a truth asked for": ("wait", lambda: bool((on_device(3) > 0).all())),
    "numbers read": ("wait", lambda: on_device(3).tolist()),
    "copied to the host": ("wait", lambda: on_device(3).cpu()),
    "made on the host": ("wait", lambda: torch.tensor([1.0, 2.0], device="cuda")),
    "chosen by a mask": ("wait", lambda: on_device(3)[on_device(3) > 0]),
    "chosen by indices of the host": ("wait", lambda: on_device(3)[torch.tensor([0, 2])]),
    "a size that depends on numbers": ("wait", lambda: torch.nonzero(on_device(3))),
    "waited for everything": ("wait", lambda: torch.cuda.synchronize()),
    "double precision": ("float64", lambda: on_device(3).double()),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    kind, make = MISTAKES[mistake]
    with pretending() as watch:
        make()
    assert {finding.kind for finding in watch.findings} == {kind}


def test_a_product_that_misses_autocast_is_found() -> None:
    with pretending() as watch:
        a = on_device(3, 3)
        with torch.autocast("cuda", torch.bfloat16):
            assert F.linear(a, a).dtype == torch.bfloat16
            assert not watch.findings
            with torch.autocast("cuda", enabled=False):
                F.linear(a, a)
    assert watch.of("float32 product")


def test_a_backward_pass_is_looked_at() -> None:
    class Waiting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * float(gradient.sum())

    with pretending() as watch:
        x = on_device(3).requires_grad_()
        Waiting.apply(x).sum().backward()
    assert [finding.kind for finding in watch.findings] == ["wait"]
    assert x.grad.is_cuda


def test_what_a_device_allows_is_no_mistake() -> None:
    with pretending() as watch:
        x = on_device(3)
        y = x + torch.tensor(2.0)
        y[torch.tensor([0, 1], device="cpu").to("cuda", non_blocking=True)] = 0.0
        y.masked_fill_(y > 1, 4.0)
        x[x > 0] = 5.0
        host = torch.empty(3, pin_memory=True)
        host.copy_(y, non_blocking=True)
    assert not watch.findings
    assert watch.operators > 5
    assert host.tolist() == [0.0, 0.0, 4.0]
    assert x.on_cpu.tolist() == [5.0, 5.0, 5.0]
