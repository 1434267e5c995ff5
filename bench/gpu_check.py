"""`python -m bench.gpu_check [--out DIR]`: builds, tests and times operators and steps on a GPU, in under 8 minutes.

Writes gpu-NAME.json and gpu-NAME.md into DIR. Exit code 0: all is well; 1: a backend is missing, a test failed or a
case could not be timed; 2: there is no GPU. With --quick every part runs at the smallest size, nothing compiled.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton

from bench.gpu.check_parts import Correctness, Times, build, measure_steps, run_tests, time_operators
from bench.measuring.machine import describe
from bench.operators.report import Row, as_markdown
from bench.step.loops import VARIANTS

TOTAL_S = 465.0  # of 8 minutes; the rest is for starting and writing
BUILD_S, TESTS_S = 150.0, 210.0  # at most
STEPS_SHARE = 0.5  # of what building and testing leave
RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Check this machine's GPU; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    parser.add_argument("--quick", action="store_true", help="every part at its smallest: whether all of it runs")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.gpu_check: expected a GPU that torch can use, found none", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    report = check(time.monotonic() + TOTAL_S, quick=options.quick)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    (options.out / f"gpu-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    text = as_text(report)
    (options.out / f"gpu-{name}.md").write_text(text)
    print(text)
    return 1 if report["troubles"] else 0


def check(end: float, *, quick: bool = False) -> dict[str, Any]:
    """Run all parts until the clock says `end`; everything that was seen, as plain objects."""
    seconds: dict[str, float] = {}
    with _part("building", "build", seconds):
        backends = build(BUILD_S)
    with _part("testing", "tests", seconds), tempfile.TemporaryDirectory() as folder:
        tests = run_tests(min(TESTS_S, end - time.monotonic()), Path(folder), quick=quick)
    with _part("training", "steps", seconds):
        now = time.monotonic()
        steps = measure_steps(now + STEPS_SHARE * (end - now), quick=quick)
    with _part("timing", "times", seconds):
        times = time_operators(end, quick=quick)
    return {
        "machine": describe_gpu(),
        "quick": quick,
        "seconds": seconds,
        "backends": backends,
        "tests": asdict(tests),
        "steps": steps.records,
        "cases": times.records,
        "missing": steps.missing | times.missing,
        "troubles": list_troubles(backends, tests, steps, times),
    }


@contextmanager
def _part(doing: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say what begins, and how long it took."""
    print(f"bench.gpu_check: {doing}", file=sys.stderr, flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)
    print(f"bench.gpu_check: {doing} took {seconds[name]} s", file=sys.stderr, flush=True)


def describe_gpu() -> list[str]:
    """Machine and versions, a line each."""
    properties = torch.cuda.get_device_properties(0)
    gpu = (
        f"GPU: {properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 1e9:.0f} GB"
    )
    return [gpu, f"CUDA: {torch.version.cuda}, triton {triton.__version__}", *describe(torch.device("cuda"))]


def list_troubles(backends: dict[str, str], tests: Correctness, steps: Times, times: Times) -> list[str]:
    """All that is not well, in words."""
    found = [
        f"backend {name}: {backends.get(name, 'not part of this version')}"
        for name in ("cuda", "triton")
        if backends.get(name) != "available"
    ]
    found += [f"test {failure}" for failure in tests.failures]
    if not tests.passed:
        found.append("tests: none passed")
    found += [f"{case}: {reason}" for case, reason in (steps.missing | times.missing).items()]
    found += [
        f"{step['detector']}, {VARIANTS[step['variant']].title}: the host waits {step['waits']} times a step"
        for step in steps.records
        if step["waits"] and step["variant"] != "a"  # torchvision's own loop waits
    ]
    for record in times.records:
        found += [f"{record['rows'][0]['op']}: {remark}" for remark in record["remarks"]]
        found += [
            f"{row['op']}, {row['dtype']}, fused: {row['status']}, {row['reason']}"
            for row in record["rows"]
            if row["impl"] == "fused" and row["status"] != "ok"
        ]
    return found


def as_text(report: dict[str, Any]) -> str:
    """The report as markdown."""
    tests = report["tests"]
    seconds = ", ".join(f"{part} {value:.0f} s" for part, value in report["seconds"].items())
    header = [
        *report["machine"],
        f"Tests: {tests['passed']} passed, {len(tests['failures'])} failed, {tests['skipped']} skipped",
        f"Time: {seconds}",
        *(f"TROUBLE: {trouble}" for trouble in report["troubles"]),
    ]
    rows = [Row(**row) for case in report["cases"] for row in case["rows"]]
    tables = (as_markdown(rows, header), _graph_table(report["cases"]), _step_table(report["steps"]))
    return "\n\n".join([f"# {report['machine'][0]}", *tables]) + "\n"


def _graph_table(cases: Sequence[dict[str, Any]]) -> str:
    """Times of the fused passes as replayed graphs, against the copy and product rates of the same rounds."""
    lines = [
        "| operator | dtype | forward+backward ms as a CUDA graph | of the copy or product rate | copy GB/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        row = next(row for row in case["rows"] if row["impl"] == "fused")
        cells = [row["op"], row["dtype"], case["graph_reason"].replace("|", "/") or f"{case['graph_ms']:.3f}"]
        cells += ["-" if case["graph_ms"] is None else f"{case['graph_fraction']:.0%}"]
        lines.append("| " + " | ".join([*cells, f"{case['rates']['copy'] / 1e9:.0f}"]) + " |")
    return "\n".join(lines)


def _step_table(steps: Sequence[dict[str, Any]]) -> str:
    """Training steps, each detector's first loop the one that the others are compared with."""
    columns = ["detector", "loop", "size", "images/s", "vs a", "launches", "waits", "peak MB", "first steps s"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * 3}{'---:|' * (len(columns) - 3)}"]
    baseline = {step["detector"]: step["images_per_second"] for step in steps if step["variant"] == "a"}
    for step in steps:
        rate, slowest = step["images_per_second"], baseline.get(step["detector"])
        title = f"{step['variant']}: {VARIANTS[step['variant']].title}"
        cells = [step["detector"], title, step["scale"], f"{rate:.1f}", f"{rate / slowest:.2f}" if slowest else "-"]
        cells += [str(step["launches"]), str(step["waits"]), f"{step['peak_mb']:.0f}", f"{step['first_s']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
