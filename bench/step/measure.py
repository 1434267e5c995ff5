"""Speed, memory and shares of one training step, of every loop and detector."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.measuring.machine import product_floor
from bench.measuring.passes import peak_extra_bytes
from bench.step.loops import VARIANTS, Loop, Scale, make_data, make_loop
from bench.step.parts import PARTS, Clock, time_parts
from gkd_fast.data.loader import build_loader
from gkd_fast.methods.gkd import ClassRings, generate_bank
from gkd_fast.training.distilling import embed_ground_truth, passed_batches
from gkd_fast.training.step import Batch

DETECTORS = ("faster_rcnn", "retinanet")
_CPU = torch.device("cpu")
EPOCH = 800  # images, all of them candidates: the most that prototypes can cost


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loop; seconds of a step and of its parts, shares of an epoch.

    `operations` are the multiplications and additions of a step's convolutions and matrix products; `product_rate` is
    how many a second a square matrix product in the step's precision does, timed between the steps.
    """

    detector: str
    variant: str
    images_per_second: float
    step_s: float
    peak_mb: float | None
    parts_s: dict[str, float] | None  # None: one graph has no parts
    operations: float
    product_rate: float
    distillation_share: float | None
    pass_share: float
    harvest_share: float
    ratio: float | None = None  # in images a second, to variant a: median of the rounds'
    graphs: int | None = None
    compile_s: float | None = None


class _Timed:
    """One loop, warmed up, and what its turns took."""

    def __init__(self, detector: str, variant: str, data: Any, scale: Scale) -> None:
        print(f"{detector} {variant}: {VARIANTS[variant].title}", file=sys.stderr, flush=True)
        self.detector, self.variant, self.batch = detector, variant, scale.batch
        loop = self.loop = make_loop(variant, detector, scale, data.classes)
        in_order = build_loader(data, batch_size=scale.batch, shuffle=False, seed=0, workers=0)
        self.candidates = list(in_order)[:4]
        loop.distiller.refresh(passed_batches(loop.adapter, self.candidates, _CPU))
        self.batches = cycle(build_loader(data, batch_size=scale.batch, shuffle=True, seed=0, workers=0))
        for _ in range(2):  # caches, compilation
            self.step()
        peak, _ = peak_extra_bytes(self.step, _CPU)
        self.peak_mb = None if peak is None else peak / 1e6
        self.product = product_floor(torch.bfloat16 if VARIANTS[variant].amp else torch.float32, _CPU)
        self.step_s: list[float] = []
        self.product_s: list[float] = []
        self.parts_s: dict[str, list[float]] = {name: [] for name in PARTS}

    def step(self) -> None:
        """One step with the next batch."""
        self.loop(next(self.batches), 1.0)

    def turn(self) -> None:
        """Time one step, and products."""
        batch = next(self.batches)
        self.step_s.append(seconds_of(lambda: self.loop(batch, 1.0)))
        self.product_s += [seconds_of(self.product.call) for _ in range(10)]

    def turn_in_parts(self) -> None:
        """Time one step's parts; one graph has none."""
        if self.loop.compiled is None:
            for name, seconds in time_parts(self.loop, self.batches).items():
                self.parts_s[name].append(seconds)


def measure(detectors: Sequence[str], variants: Sequence[str], steps: int, scale: Scale) -> list[Row]:
    """One row for each detector and variant.

    A detector's loops take turns, a step each, so that the machine's moods hit all alike; the ratio to variant a is the
    median of the rounds'.
    """
    data = make_data(scale)
    rows: list[Row] = []
    for detector in detectors:
        rows += _measure_detector(detector, variants, steps, data, scale)
        torch.compiler.reset()
    return rows


def _measure_detector(detector: str, variants: Sequence[str], steps: int, data: Any, scale: Scale) -> list[Row]:
    loops = [_Timed(detector, variant, data, scale) for variant in variants]
    for index in range(steps):
        print(f"{detector}: round {index + 1} of {steps}", file=sys.stderr, flush=True)
        for timed in loops:
            timed.turn()
    for _ in range(max(2, steps // 2)):
        for timed in loops:
            timed.turn_in_parts()
    baseline = next((timed.step_s for timed in loops if timed.variant == "a"), None)
    return [_row(timed, baseline) for timed in loops]


def _row(timed: _Timed, baseline: Sequence[float] | None) -> Row:
    loop, batch, candidates = timed.loop, timed.batch, timed.candidates
    step_s = statistics.median(timed.step_s)
    compiled = loop.compiled
    parts_s = None
    if compiled is None:
        parts_s = {name: statistics.median(seconds) for name, seconds in timed.parts_s.items()}
    with loop.precision.autocast():
        pass_s = seconds_of(lambda: _collect(loop, candidates)) / (len(candidates) * batch)
    harvest_s = _harvest_seconds(loop, timed.batches) / batch
    epoch_s = EPOCH * step_s / batch
    generate_s = _generate_seconds(loop, candidates)
    return Row(
        detector=timed.detector,
        variant=timed.variant,
        images_per_second=batch / step_s,
        step_s=step_s,
        peak_mb=timed.peak_mb,
        parts_s=parts_s,
        operations=_operations(loop, next(timed.batches)),
        product_rate=timed.product.amount / statistics.median(timed.product_s),
        distillation_share=parts_s and parts_s["distillation"] / sum(parts_s.values()),
        pass_share=(EPOCH * pass_s + generate_s) / epoch_s,
        harvest_share=(EPOCH * harvest_s + generate_s) / epoch_s,
        ratio=baseline and statistics.median(a / own for a, own in zip(baseline, timed.step_s, strict=True)),
        graphs=compiled and len(compiled.seconds),
        compile_s=compiled and sum(compiled.seconds.values()),
    )


def cycle(loader: Any) -> Iterator[Batch]:
    """Batches without end."""
    while True:
        yield from loader


def seconds_of(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _operations(loop: Loop, batch: Batch) -> float:
    """Multiplications and additions of one step, not compiled, for those of graphs cannot be counted."""
    with _uncompiled(loop), FlopCounterMode(display=False) as counter:
        loop(batch, 1.0)
    return float(counter.get_total_flops())


@contextmanager
def _uncompiled(loop: Loop) -> Iterator[None]:
    compiled, loop.compiled = loop.compiled, None
    yield
    loop.compiled = compiled


def _collect(loop: Loop, batches: Sequence[Batch]) -> Any:
    teacher, settings = loop.distiller.detectors[1], loop.distiller.settings
    return embed_ground_truth(loop.adapter, teacher, batches, settings, _CPU)


def _harvest_seconds(loop: Loop, batches: Iterator[Batch]) -> float:
    """Seconds that remembering the instances takes in a step that is not compiled."""
    distiller, clock = loop.distiller, Clock()
    names = ("embeddings", "remember")
    distiller.rings = ClassRings(len(distiller.classes), distiller.settings.capacity)
    for name in names:
        setattr(distiller, name, clock.timed("data", getattr(distiller, name), "teacher"))
    with _uncompiled(loop):
        loop(next(batches), 1.0)
    for name in names:
        delattr(distiller, name)
    distiller.rings = None
    return clock.seconds["data"]


def _generate_seconds(loop: Loop, batches: Sequence[Batch]) -> float:
    """Seconds to pick the prototypes of an epoch's instances: those of the batches, repeated with some noise."""
    found = _collect(loop, batches)
    times = EPOCH // sum(len(images) for images, _ in batches)
    noisy = {}
    for name in ("student", "teacher"):
        space = getattr(found, name).repeat(1, times, 1)
        noisy[name] = space * (1 + 0.1 * torch.rand_like(space))
    same = {name: torch.cat([getattr(found, name)] * times) for name in ("labels", "image_ids", "boxes", "flipped")}
    many = dataclasses.replace(found, **noisy, **same)
    return seconds_of(lambda: generate_bank(many, loop.distiller.classes, loop.distiller.settings))
