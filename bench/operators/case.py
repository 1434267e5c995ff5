"""A measured case: one operator on one shape, with all implementations that compete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.measuring.agreement import Result
from bench.measuring.passes import Call
from bench.operators.shapes import Shape
from bench.operators.work import Work
from gkd_fast import ops

FUSED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # backends whose kernels are measured, by device


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case's outputs.

    Attributes:
        name: fused, reference, compiled, torchvision or published_loop.
        call: computes the outputs.
        once: too slow to be repeated; its one run is timed.
        scale: factor from the time of a call to the time of the whole case, where a call does a part of it.
        note: what a reader has to know about the row.
        otherwise: takes its place where it raises.
    """

    name: str
    call: Call
    once: bool = False
    scale: float = 1.0
    note: str = ""
    otherwise: Implementation | None = None


@dataclass(frozen=True)
class Case:
    """One operator on one shape and dtype.

    Attributes:
        op: the operator's name.
        detail: the sizes in words.
        device: of all inputs.
        leaves: the inputs that are differentiated; none for an operator without gradient.
        implementations: the reference first.
        work: compulsory work of a forward and backward pass.
        compare: says how a result differs from the reference's, or None.
    """

    op: str
    detail: str
    device: torch.device
    leaves: Sequence[Tensor]
    implementations: Sequence[Implementation]
    work: Work
    compare: Callable[[Result, Result], str | None]


@dataclass(frozen=True)
class Setting:
    """What a case is built for."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def leaf(self, tensor: Tensor) -> Tensor:
        """A differentiable input of the case's dtype."""
        return self.fixed(tensor).requires_grad_()

    def fixed(self, tensor: Tensor) -> Tensor:
        """An input of the case's dtype that has no gradient."""
        return tensor.to(self.device, self.dtype)


def on_backend(name: str, function: Callable[..., Any], *args: object, **options: object) -> Call:
    """A call of the function with this backend selected; its outputs as a tuple."""

    def call() -> Sequence[Tensor]:
        with ops.use_backend(name):
            outputs = function(*args, **options)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return call


def fused(device: torch.device, function: Callable[..., Any], *args: object, **options: object) -> Call:
    """A call of the device's kernels; it raises where there are none, while `auto` would fall back."""
    kernels, status = FUSED[device.type], ops.backends()

    def unavailable() -> Sequence[Tensor]:
        raise RuntimeError(
            "; ".join(f"{kernel}: {status.get(kernel, 'not part of this version')}" for kernel in kernels)
        )

    if not any(status.get(kernel) == "available" for kernel in kernels):
        return unavailable
    return on_backend(kernels[0] if len(kernels) == 1 else "auto", function, *args, **options)


def implementations(
    device: torch.device,
    function: Callable[..., Any],
    loop: Callable[..., Any] | None,
    *args: object,
    torchvision_call: Call | None = None,
    **options: object,
) -> list[Implementation]:
    """The public function as reference, fused and compiled; the other two where they are given."""
    whole, in_parts = (torch.compile(function, fullgraph=full, dynamic=False) for full in (True, False))
    with_breaks = Implementation("compiled", on_backend("reference", in_parts, *args, **options), note="no full graph")
    found = [
        Implementation("reference", on_backend("reference", function, *args, **options)),
        Implementation("fused", fused(device, function, *args, **options)),
        Implementation("compiled", on_backend("reference", whole, *args, **options), otherwise=with_breaks),
    ]
    if torchvision_call is not None:
        found.append(Implementation("torchvision", torchvision_call))
    if loop is not None:
        found.append(Implementation("published_loop", on_backend("reference", loop, *args, **options), once=True))
    return found
