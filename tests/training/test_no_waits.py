"""No training step waits for the device: whatever reads numbers on the host, or sizes tensors by them, raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_steps import make_config, make_step
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.step.launches import WAITING, waits
from gkd_fast.methods.registry import METHODS
from gkd_fast.overlap import ciou_loss, diou_loss, giou_loss
from gkd_fast.training.readback import Readback
from gkd_fast.training.step import Batch

DETECTORS = ("faster_rcnn", "retinanet")
ASKED = [
    (detector, method)
    for detector in DETECTORS
    for method in (*METHODS, "recommended")
    if (detector, method) != ("faster_rcnn", "crosskd")
]
READING = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__, Tensor.__bool__}
READING |= {Tensor.__int__, Tensor.__float__, Tensor.__index__}


class WaitError(Exception):
    """The host of a GPU would wait here."""


class _Operators(TorchDispatchMode):
    """Sees the backward pass and the optimiser as well."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(function, args, kwargs):
            raise WaitError(str(function))
        return function(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """On a CPU a tensor's numbers are read without an operator."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READING:
            raise WaitError(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waits() -> Iterator[None]:
    """Within, what would wait for a GPU raises."""

    def take(readback: Readback, **options: Any) -> Any:
        with torch._C.DisableTorchFunction():  # what has arrived lies in the host's memory
            return arrived(readback, **options)

    arrived = Readback.take
    with pytest.MonkeyPatch.context() as patch, _Reads(), _Operators():
        patch.setattr(Readback, "take", take)
        yield


def without_boxes(batch: Batch, *images: int) -> Batch:
    """The batch with some images that show nothing."""
    shown, targets = batch
    emptied = [{**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets]
    return shown, [emptied[i] if i in images else target for i, target in enumerate(targets)]


def run_three_steps(detector: str, **sections: dict[str, Any]) -> None:
    """With boxes, with boxes in some of the images, and without any."""
    step, (first, second) = make_step(make_config(detector, **sections))
    assert all(len(target["boxes"]) for target in second[1])
    step(first, 1.0)  # constants of a size are made once
    for batch in (second, without_boxes(second, 0, 2), without_boxes(second, 0, 1, 2, 3)):
        with no_waits():
            terms = step(batch, 0.5)
        assert all(value.isfinite() for value in terms.values())


@pytest.mark.parametrize(("detector", "method"), ASKED)
def test_no_method_waits(detector: str, method: str) -> None:
    """With the default settings: units of the teacher, trust of the background, 3x3 adapters."""
    run_three_steps(detector, distill={"method": method})


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_student_alone_does_not_wait(detector: str) -> None:
    step, (first, second) = make_step(make_config(detector), distilled=False)
    step(first, 1.0)
    for batch in (second, without_boxes(second, 0, 1, 2, 3)):
        with no_waits():
            step(batch, 1.0)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    "sections",
    [
        {"distill": {"prototypes_from": "harvest"}, "run": {"grad_norm_steps": 1}},
        {"distill": {"one_stage_soft": "published", "method": "gkd+fgd", "robust_masks": True}},
        {"run": {"amp": True}, "distill": {"auto_balance": True}, "optim": {"optimizer": "sgd"}},
    ],
    ids=["harvested", "published", "balanced"],
)
def test_no_variant_of_a_step_waits(detector: str, sections: dict[str, Any]) -> None:
    run_three_steps(detector, **sections)


def without_a_mode(call: Callable[[], Any]) -> set[str]:
    """The operators of a call; a mode would have some backward passes of torch take another way.

    Without those of fused optimisers, which on a CPU alone read the number of the step.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.name.removeprefix("aten::") for event in profile.events() if not is_of_optimizer(event)}


def is_of_optimizer(event: Any) -> bool:
    while event is not None and not event.name.startswith("aten::_fused_"):
        event = event.cpu_parent
    return event is not None


@pytest.mark.parametrize("loss", [giou_loss, diou_loss, ciou_loss])
def test_the_gradient_of_a_loss_of_boxes_does_not_wait(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 3, 5]], requires_grad=True)
    found = without_a_mode(lambda: loss(boxes, boxes.detach() + 1).sum().backward())
    assert "maximum" in found
    assert found.isdisjoint(WAITING)
    assert "_local_scalar_dense" in without_a_mode(lambda: boxes.prod(1).sum().backward())


@pytest.mark.parametrize(
    ("detector", "method"), [("faster_rcnn", "recommended"), ("retinanet", "recommended"), ("retinanet", "crosskd")]
)
def test_nothing_waits_where_no_mode_looks(detector: str, method: str) -> None:
    step, (first, second) = make_step(make_config(detector, distill={"method": method}))
    step(first, 1.0)
    found = without_a_mode(lambda: step(second, 0.5))
    assert "convolution_backward" in found
    assert found.isdisjoint(WAITING)


X = torch.arange(4.0)
PLANTED: dict[str, Callable[[], Any]] = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X.sum()),
    "bool": lambda: bool(X.sum() > 1),
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "cpu": lambda: X.cpu(),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 1),
    "index": lambda: X[X > 1],
    "index_put": lambda: X.clone().__setitem__(X > 1, X[2:]),
    "masked_select": lambda: X.masked_select(X > 1),
    "unique": lambda: X.unique(),
    "unique_consecutive": lambda: X.unique_consecutive(),
    "repeat_interleave": lambda: X.repeat_interleave(torch.ones(4, dtype=torch.int64)),
    "bincount": lambda: X.long().bincount(),
    "equal": lambda: torch.equal(X, X + 1),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_waits_raises(planted: str) -> None:
    with pytest.raises(WaitError), no_waits():
        PLANTED[planted]()


def test_a_wait_of_the_backward_pass_raises() -> None:
    class Waiting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * float(gradient.sum())

    x = X.clone().requires_grad_()
    with pytest.raises(WaitError), no_waits():
        Waiting.apply(x).sum().backward()


def test_what_does_not_wait_passes() -> None:
    with no_waits():
        x = X.clone()
        x[x > 1] = 0.0
        x[torch.tensor([0, 2])].masked_fill(x[:2] > 1, 0.0).repeat_interleave(2)
