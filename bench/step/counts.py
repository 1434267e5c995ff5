"""Kernels and waits of one step of every detector and variant; exact, and the same on any machine."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.step.launches import Launches
from bench.step.loops import VARIANTS, Loop, Scale, make_data, make_loop
from gkd_fast.data.loader import build_loader
from gkd_fast.training.distilling import passed_batches

MAIN_JOB = Scale(
    teacher="resnet18",
    student="mobilenet_v2",
    student_width=0.35,
    side=128,
    batch=8,
    channels=64,
    student_channels=48,
    head=256,
    student_head=128,
    proposals=300,
    rois=64,
    images=16,
    anchor_size=12,
    pyramid_norm=True,
    freeze_norm=False,
)
"""The networks and images of `python -m gkd_fast.train --amp`, eight images a step."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of the second step of one loop; `kernels_detector`: between backbone and losses.

    Ours distil with the default settings; the second step still measures the teacher's units.
    """

    detector: str
    variant: str
    kernels: int
    kernels_detector: int
    waits: int


def count(detectors: Sequence[str], variants: Sequence[str], scale: Scale) -> list[Counts]:
    """One row for each detector and variant; compiled ones are counted as they would run uncompiled."""
    data = make_data(scale)
    rows = []
    for detector in detectors:
        for variant in variants:
            print(f"{detector} {variant}: {VARIANTS[variant].title}", file=sys.stderr, flush=True)
            loop = make_loop(variant, detector, scale, data.classes, compiled=False, published=False)
            launches = count_step(loop, data, scale)
            rows.append(
                Counts(
                    detector=detector,
                    variant=variant,
                    kernels=sum(launches.kernels.values()),
                    kernels_detector=launches.detector,
                    waits=len(launches.waits),
                )
            )
    return rows


def count_step(loop: Loop, data: Any, scale: Scale) -> Launches:
    """The second step of a loop."""
    loader = build_loader(data, batch_size=scale.batch, shuffle=False, seed=0, workers=0)
    batches = list(loader)
    loop.distiller.refresh(passed_batches(loop.adapter, batches, torch.device("cpu")))
    loop.adapter.model.train()
    loop(batches[0], 1.0)
    with Launches() as launches, _told_apart(loop, launches):
        loop(batches[1], 1.0)
    return launches


@contextmanager
def _told_apart(loop: Loop, launches: Launches) -> Iterator[None]:
    """The student's pass counts as the detector's own, but for its backbone."""
    adapter = loop.adapter

    def within(context: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with context():
                return function(*arguments)

        return call

    adapter.train_pass = within(launches.between_backbone_and_losses, adapter.train_pass)
    adapter.pyramid = within(launches.outside_detector, adapter.pyramid)
    try:
        yield
    finally:
        del adapter.train_pass, adapter.pyramid


def lines(rows: Sequence[Counts]) -> list[str]:
    """A markdown table."""
    names = [field.name for field in dataclasses.fields(Counts)]
    table = [f"| {' | '.join(names)} |", f"|{'---|' * 2}{'---:|' * (len(names) - 2)}"]
    for row in rows:
        table.append(f"| {' | '.join(str(getattr(row, name)) for name in names)} |")
    return table
