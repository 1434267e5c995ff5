"""Speed, memory and shares of one training step, of every loop and detector."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
from gkd_fast.training.step import Batch, TrainStep

DETECTORS = ("faster_rcnn", "retinanet")
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
    ratio: float | None = None  # in images a second, to variant a
    graphs: int | None = None
    compile_s: float | None = None


def measure(detectors: Sequence[str], variants: Sequence[str], steps: int, scale: Scale) -> list[Row]:
    """One row for each detector and variant."""
    data = make_data(scale)
    rows: list[Row] = []
    for detector in detectors:
        baseline: float | None = None
        for variant in variants:
            print(f"{detector} {variant}: {VARIANTS[variant].title}", file=sys.stderr, flush=True)
            loop = make_loop(variant, detector, scale, data.classes)
            row = _measure_loop(loop, detector, variant, data, steps, scale)
            baseline = row.images_per_second if variant == "a" else baseline
            rows.append(dataclasses.replace(row, ratio=row.images_per_second / baseline if baseline else None))
            del loop
            torch.compiler.reset()
    return rows


def _measure_loop(loop: Loop, detector: str, variant: str, data: Any, steps: int, scale: Scale) -> Row:
    loader = build_loader(data, batch_size=scale.batch, shuffle=True, seed=0, workers=0)
    autocast = loop.precision.autocast if loop.precision else nullcontext
    candidates = list(build_loader(data, batch_size=scale.batch, shuffle=False, seed=0, workers=0))[:4]
    loop.distiller.refresh(passed_batches(loop.adapter, candidates, torch.device("cpu")))
    batches = cycle(loader)
    for _ in range(2):  # caches, compilation
        loop(next(batches), 1.0)
    peak, _ = peak_extra_bytes(lambda: loop(next(batches), 1.0), torch.device("cpu"))
    product = product_floor(torch.bfloat16 if VARIANTS[variant].amp else torch.float32, torch.device("cpu"))
    seconds, product_s = [], []
    for _ in range(steps):
        seconds.append(seconds_of(lambda: loop(next(batches), 1.0)))
        product_s += [seconds_of(product.call) for _ in range(10)]
    step_s = statistics.median(seconds)
    compiled = getattr(loop, "compiled", None)
    parts_s = None
    if compiled is None:
        parts = [time_parts(loop, batches) for _ in range(max(2, steps // 2))]
        parts_s = {name: statistics.median(sample[name] for sample in parts) for name in PARTS}
    with autocast():
        pass_s = seconds_of(lambda: _collect(loop, candidates)) / (len(candidates) * scale.batch)
    harvest_s = _harvest_seconds(loop, batches) / scale.batch
    epoch_s = EPOCH * step_s / scale.batch
    generate_s = _generate_seconds(loop, candidates)
    return Row(
        detector=detector,
        variant=variant,
        images_per_second=scale.batch / step_s,
        step_s=step_s,
        peak_mb=None if peak is None else peak / 1e6,
        parts_s=parts_s,
        operations=_operations(loop, next(batches)),
        product_rate=product.amount / statistics.median(product_s),
        distillation_share=parts_s and parts_s["distillation"] / sum(parts_s.values()),
        pass_share=(EPOCH * pass_s + generate_s) / epoch_s,
        harvest_share=(EPOCH * harvest_s + generate_s) / epoch_s,
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
    """Multiplications and additions of one step, run eager, for compiled graphs cannot be counted."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        loop(batch, 1.0)
    return float(counter.get_total_flops())


def _collect(loop: Loop, batches: Sequence[Batch]) -> Any:
    teacher, settings = loop.distiller.detectors[1], loop.distiller.settings
    return embed_ground_truth(loop.adapter, teacher, batches, settings, torch.device("cpu"))


def _harvest_seconds(loop: Loop, batches: Iterator[Batch]) -> float:
    """Seconds that remembering the instances takes in a step that is not compiled."""
    distiller, clock = loop.distiller, Clock()
    names = ("embeddings", "remember")
    distiller.rings = ClassRings(len(distiller.classes), distiller.settings.capacity)
    for name in names:
        setattr(distiller, name, clock.timed("data", getattr(distiller, name), "teacher"))
    if isinstance(loop, TrainStep):
        compiled, loop.compiled = loop.compiled, None
        loop(next(batches), 1.0)
        loop.compiled = compiled
    else:
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
