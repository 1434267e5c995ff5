"""`python -m bench.step`: one training step and its parts, beside torchvision's loop with the published algorithm."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.measuring.machine import describe, product_floor
from bench.measuring.options import Parser, is_writable
from bench.measuring.passes import peak_extra_bytes
from bench.step.loops import VARIANTS, Loop, Scale, make_config, make_data, make_loop
from gkd_fast.data.loader import build_loader
from gkd_fast.detectors import StudentPass
from gkd_fast.methods.gkd import ClassRings, generate_bank
from gkd_fast.training.distilling import build_distiller, embed_ground_truth, freeze_teacher, passed_batches
from gkd_fast.training.step import Batch

DETECTORS = ("faster_rcnn", "retinanet")
PARTS = ("data", "teacher", "student", "distillation", "optimizer")
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
    parts_s: dict[str, float]
    operations: float
    product_rate: float
    distillation_share: float
    pass_share: float
    harvest_share: float
    ratio: float | None = None  # in images a second, to variant a
    graphs: dict[str, int] | None = None


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


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the tables, write the JSON file."""
    options = _parse(argv)
    if options.worker:
        print(json.dumps(_worker(options.steps, Scale())), flush=True)
        return 0
    rows = measure(options.detectors, options.variants, options.steps, Scale())
    lines = [*describe(torch.device("cpu")), "", *table(rows)]
    scaling = measure_scaling(options.steps) if options.scaling else None
    if scaling:
        lines += [
            "",
            "Scaling, Faster R-CNN, --amp, one thread a process, 4 images a process and step: " + scaling["text"],
        ]
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(r) for r in rows], "scaling": scaling}, indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m bench.step", description="Speed and memory of one training step.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="V")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of every loop (default: 5)")
    parser.add_argument("--scaling", action="store_true", help="two processes against one, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"argument --steps: expected a positive number, got {options.steps}")
    if options.json and not is_writable(options.json):
        parser.error(f"argument --json: expected a file in a folder that can be written to, got {options.json}")
    return options


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
    batches = _cycle(loader)
    for _ in range(2):  # caches, compilation
        loop(next(batches), 1.0)
    peak, _ = peak_extra_bytes(lambda: loop(next(batches), 1.0), torch.device("cpu"))
    product = product_floor(torch.bfloat16 if VARIANTS[variant].amp else torch.float32, torch.device("cpu"))
    seconds, product_s = [], []
    for _ in range(steps):
        seconds.append(_seconds(lambda: loop(next(batches), 1.0)))
        product_s += [_seconds(product.call) for _ in range(10)]
    step_s = statistics.median(seconds)
    parts = [_parts(loop, batches) for _ in range(max(2, steps // 2))]
    parts_s = {name: statistics.median(sample[name] for sample in parts) for name in PARTS}
    with autocast():
        pass_s = _seconds(lambda: _collect(loop, candidates)) / (len(candidates) * scale.batch)
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
        distillation_share=parts_s["distillation"] / sum(parts_s.values()),
        pass_share=(EPOCH * pass_s + generate_s) / epoch_s,
        harvest_share=(EPOCH * harvest_s + generate_s) / epoch_s,
        graphs=getattr(getattr(loop, "compiler", None), "graphs", None),
    )


def _cycle(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _operations(loop: Loop, batch: Batch) -> float:
    """Multiplications and additions of one step, run eager, for compiled graphs cannot be counted."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        loop(batch, 1.0)
    return float(counter.get_total_flops())


def _parts(loop: Loop, batches: Iterator[Batch]) -> dict[str, float]:
    """Seconds of the parts of one step, which ends with the same gradients as a step in one piece.

    The student's maps and logits are cut from its graph; distillation runs forward and backward on the copies, and its
    gradients enter the student's backward pass.
    """
    clock = Clock()
    teacher = loop.distiller.detectors[1]
    timed = [(loop.distiller, "_teach"), *([(teacher, "classify")] if hasattr(teacher, "classify") else [])]
    for owner, name in timed:
        setattr(owner, name, clock.timed("teacher", getattr(owner, name), "distillation"))
    with loop._compiled():
        with clock.part("data"):
            batch = next(batches)
            images, targets = loop.prepare(batch)
        autocast = loop.precision.autocast if loop.precision else nullcontext
        with clock.part("student"), autocast():
            own = loop.student_pass(images, targets)
        loop.optimizer.zero_grad(set_to_none=True)
        with clock.part("distillation"):
            cut, roots, copies = _cut(own)
            with autocast():
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
    names = [name for name in ("logits", "roi") if name in own.soft]
    roots = [*own.features, *(own.soft[name] for name in names)]
    copies = [root.detach().requires_grad_() for root in roots]
    count = len(own.features)
    soft = {**own.soft, **dict(zip(names, copies[count:], strict=True))}
    return dataclasses.replace(own, features=copies[:count], soft=soft), roots, copies


def _collect(loop: Loop, batches: Sequence[Batch]) -> Any:
    teacher, settings = loop.distiller.detectors[1], loop.distiller.settings
    return embed_ground_truth(loop.adapter, teacher, batches, settings, torch.device("cpu"))


def _harvest_seconds(loop: Loop, batches: Iterator[Batch]) -> float:
    """Seconds that filling the rings takes in a step."""
    distiller = loop.distiller
    distiller.rings = ClassRings(len(distiller.classes), distiller.settings.capacity)
    clock = Clock()
    distiller._remember = clock.timed("data", distiller._remember, "teacher")
    loop(next(batches), 1.0)
    del distiller._remember
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
    return _seconds(lambda: generate_bank(many, loop.distiller.classes, loop.distiller.settings))


def table(rows: Sequence[Row]) -> list[str]:
    """A markdown table."""
    columns = ["detector", "loop", "images/s", "vs a", "GFLOP a step", "of product rate", "peak MB"]
    columns += [f"{part} ms" for part in PARTS]
    columns += ["distillation", "prototypes: pass", "harvest"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * 2}{'---:|' * (len(columns) - 2)}"]
    for row in rows:
        cells = [row.detector, f"{row.variant}: {VARIANTS[row.variant].title}", f"{row.images_per_second:.2f}"]
        cells += ["-" if row.ratio is None else f"{row.ratio:.2f}"]
        fraction = row.operations / row.step_s / row.product_rate
        cells += [f"{row.operations / 1e9:.0f}", f"{100 * fraction:.0f} %"]
        cells += ["-" if row.peak_mb is None else f"{row.peak_mb:.0f}"]
        cells += [f"{1e3 * row.parts_s[part]:.0f}" for part in PARTS]
        cells += [f"{100 * share:.1f} %" for share in (row.distillation_share, row.pass_share, row.harvest_share)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _worker(steps: int, scale: Scale) -> dict[str, Any]:
    """Images a second of all processes together, in one of them."""
    from gkd_fast import parallel
    from gkd_fast.detectors import adapt, build_detector, specs
    from gkd_fast.training.distributed import process_group
    from gkd_fast.training.step import TrainStep

    device = torch.device("cpu")
    torch.set_num_threads(1)
    with process_group(device):
        data = make_data(scale)
        config = make_config("faster_rcnn", scale, amp=True, compiled=False)
        torch.manual_seed(0)
        teacher, student = (build_detector(spec, len(data.classes)).train() for spec in specs(config))
        freeze_teacher(teacher, device)
        adapter = adapt(student)
        distiller = build_distiller(adapt(teacher), adapter, data.classes, config.distill)
        step = TrainStep(adapter, config, 1e-4, device, distiller)
        world = parallel.world_size()
        loader = build_loader(
            data, batch_size=scale.batch * world, shuffle=True, seed=0, workers=0, share=(parallel.rank(), world)
        )
        batches = _cycle(loader)
        distiller.refresh(passed_batches(step.adapter, [next(batches)], device), images=list(range(len(data))))
        student.train()
        for _ in range(2):
            step(next(batches), 1.0)
        seconds = statistics.median(_seconds(lambda: step(next(batches), 1.0)) for _ in range(steps))
        return {"images_per_second": scale.batch * world / seconds, "rank": parallel.rank()}


def measure_scaling(steps: int) -> dict[str, Any]:
    """Images a second of one process with one thread, and of two."""
    rates = {}
    for processes in (1, 2):
        print(f"scaling: {processes} processes", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "bench.step", "--worker", "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = [json.loads(line) for line in re.findall(r"\{[^{}]*\}", output)]
        rates[processes] = next(item["images_per_second"] for item in found if item["rank"] == 0)
    ratio = rates[2] / rates[1]
    text = f"{rates[1]:.2f} images/s with one process, {rates[2]:.2f} with two: {ratio:.2f} times"
    return {"one": rates[1], "two": rates[2], "ratio": ratio, "text": text}
