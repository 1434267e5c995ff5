"""Seconds of the parts of one training step, taken apart without changing its gradients."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from bench.step.loops import Loop
from gkd_fast.detectors import StudentPass
from gkd_fast.training.step import Batch

PARTS = ("data", "teacher", "student", "distillation", "optimizer")


class Clock:
    """Adds up the seconds of the parts of a step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within for a part."""
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    def timed(self, name: str, function: Callable[..., Any], within: str) -> Callable[..., Any]:
        """A function whose time counts for one part and no more for the part that calls it."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            spent = time.perf_counter() - started
            self.seconds[name] += spent
            self.seconds[within] -= spent
            return result

        return call


def time_parts(loop: Loop, batches: Iterator[Batch]) -> dict[str, float]:
    """Seconds of the parts of one step, which ends with the same gradients as a step in one piece.

    The student's maps and logits are cut from its graph; distillation runs forward and backward on the copies, and its
    gradients enter the student's backward pass.
    """
    clock = Clock()
    teacher = loop.distiller.detectors[1]
    timed = [(loop.distiller, "_teach"), *([(teacher, "classify")] if hasattr(teacher, "classify") else [])]
    for owner, name in timed:
        setattr(owner, name, clock.timed("teacher", getattr(owner, name), "distillation"))
    with clock.part("data"):
        batch = next(batches)
        images, targets = loop.prepare(batch)
    with clock.part("student"), loop.precision.autocast():
        own = loop.student_pass(images, targets)
    loop.optimizer.zero_grad(set_to_none=True)
    with clock.part("distillation"):
        cut, roots, copies = _cut(own)
        with loop.precision.autocast():
            distilled = loop.distil(cut, images, 1.0)
        torch.stack(list(distilled.values())).sum().backward()
    with clock.part("student"):
        pairs = [(root, copy.grad) for root, copy in zip(roots, copies, strict=True) if copy.grad is not None]
        total = torch.stack(list(own.losses.values())).sum()
        torch.autograd.backward([total, *(root for root, _ in pairs)], [None, *(grad for _, grad in pairs)])
    with clock.part("optimizer"):
        loop.update({**own.losses, **distilled}, [target["image_id"] for target in targets])
    for owner, name in timed:
        delattr(owner, name)
    return clock.seconds


def _cut(own: StudentPass) -> tuple[StudentPass, list[Tensor], list[Tensor]]:
    """The pass on copies outside of the student's graph, what they were copied from, and the copies."""
    shown = {name: own.soft[name] for name in ("logits", "roi") if name in own.soft}
    roots = [*own.features, *tree_leaves(shown)]
    copies = [root.detach().requires_grad_() for root in roots]
    count = len(own.features)
    soft = {**own.soft, **tree_unflatten(copies[count:], tree_structure(shown))}
    return dataclasses.replace(own, features=copies[:count], soft=soft), roots, copies
