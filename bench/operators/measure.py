"""Time, memory and agreement of every implementation of a case."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from bench.measuring.agreement import Result
from bench.measuring.passes import Call, Sample, make_cotangents, peak_extra_bytes, run_pass
from bench.operators.case import Case, Implementation

ROUNDS_S = 10.0  # budget of all timed rounds of a case
MIN_ROUNDS, MAX_ROUNDS = 2, 30
TURN_S, MAX_RUNS_A_TURN = 0.2, 10  # a fast implementation runs so long before the next has its turn
SLOW_S = 5.0  # an implementation slower than this is timed once, after its warm-up


@dataclass(frozen=True)
class Measurement:
    """What was seen of one implementation; times and memory are None where it failed."""

    name: str
    status: Literal["ok", "differs", "failed"] = "ok"
    reason: str = ""  # of a status other than ok
    note: str = ""
    time: Sample | None = None
    peak_bytes: int | None = None


def measure(
    case: Case, floors: Mapping[str, Call], progress: Callable[[str], None]
) -> tuple[list[Measurement], dict[str, float]]:
    """Check and measure a case's implementations; the first of them is the reference.

    Every implementation runs once, to warm up and to be held against the reference. Those that run only once
    (slow loops) are timed there; the others are timed in turns, together with the floors, so that a ratio
    compares neighbours in time.

    Returns:
        A measurement for each implementation, and the median seconds of each floor.
    """
    reference, *others = case.implementations
    progress(reference.name)
    cotangents = make_cotangents(reference.call()) if case.leaves else []
    _, truth = run_pass(reference.call, case.leaves, cotangents, case.device)
    measurements = [Measurement(reference.name, note=reference.note)]
    repeated = [reference]
    for implementation in others:
        progress(implementation.name)
        settled, measurement = _first_pass(implementation, case, cotangents, truth)
        measurements.append(measurement)
        if measurement.status != "failed" and measurement.time is None:
            repeated.append(settled)
    del truth

    progress("timed rounds")
    passes = {i.name: partial(_timed_pass, i.call, case.leaves, cotangents, case.device) for i in repeated}
    tracked = {name: peak_extra_bytes(run, case.device) for name, run in passes.items()}
    slow = {name: sample for name, (_, sample) in tracked.items() if sample.total > SLOW_S}
    turns = {name: run for name, run in passes.items() if name not in slow}
    turns |= {name: partial(_timed_pass, call, (), (), case.device) for name, call in floors.items()}
    times = slow | _interleave(turns)
    measurements = [
        replace(m, time=times[m.name], peak_bytes=tracked[m.name][0]) if m.name in tracked else m for m in measurements
    ]
    return measurements, {name: times[name].total for name in floors}


def _timed_pass(*arguments: Any) -> Sample:
    """A pass of which nothing is kept but its time."""
    return run_pass(*arguments)[0]


def _first_pass(
    implementation: Implementation, case: Case, cotangents: Sequence[Tensor | None], truth: Result
) -> tuple[Implementation, Measurement]:
    """Check one implementation; where it raises, the one that stands in for it. Returns the one that ran."""
    run = partial(run_pass, implementation.call, case.leaves, cotangents, case.device)
    try:
        peak, (sample, result) = peak_extra_bytes(run, case.device)
    except Exception as error:  # whatever a compiler or a backend raises belongs into its row
        reason = _one_line(error)
        if implementation.otherwise is None:
            return implementation, Measurement(implementation.name, "failed", reason, implementation.note)
        settled, measurement = _first_pass(implementation.otherwise, case, cotangents, truth)
        return settled, replace(measurement, note=f"{measurement.note}: {reason}")
    reason = case.compare(result, truth) or ""
    measurement = Measurement(implementation.name, "differs" if reason else "ok", reason, implementation.note)
    if implementation.once:
        scale = implementation.scale
        scaled = Sample(sample.forward * scale, sample.total * scale)
        measurement = replace(measurement, time=scaled, peak_bytes=peak)
    return implementation, measurement


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _interleave(passes: Mapping[str, Callable[[], Sample]]) -> dict[str, Sample]:
    """Median of each, from rounds in which every one has a turn."""
    seconds = {name: run().total for name, run in passes.items()}
    runs = {name: min(MAX_RUNS_A_TURN, max(1, int(TURN_S / s))) for name, s in seconds.items()}
    round_s = sum(seconds[name] * count for name, count in runs.items())
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(ROUNDS_S / round_s)))
    samples: dict[str, list[Sample]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            samples[name] += [run() for _ in range(runs[name])]
    return {
        name: Sample(statistics.median(s.forward for s in taken), statistics.median(s.total for s in taken))
        for name, taken in samples.items()
    }
