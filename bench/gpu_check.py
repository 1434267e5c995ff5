"""`python -m bench.gpu_check [--out DIR]`: builds, tests and times all operators on a GPU, in under 8 minutes.

Writes gpu-NAME.json and gpu-NAME.md into DIR. Exit code 0: all is well; 1: a backend is missing, a test failed or a
case could not be timed; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton

from bench.gpu.check_parts import Correctness, Times, build, run_tests, time_operators
from bench.measuring.machine import describe
from bench.operators.report import Row, as_markdown

TOTAL_S = 465.0  # of 8 minutes; the rest is for starting and writing
BUILD_S, TESTS_S = 150.0, 210.0  # at most
RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Check this machine's GPU; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.gpu_check: expected a GPU that torch can use, found none", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    report = check(time.monotonic() + TOTAL_S)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    (options.out / f"gpu-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    text = as_text(report)
    (options.out / f"gpu-{name}.md").write_text(text)
    print(text)
    return 1 if report["troubles"] else 0


def check(end: float) -> dict[str, Any]:
    """Run all parts until the clock says `end`; everything that was seen, as plain objects."""
    seconds: dict[str, float] = {}
    start = time.monotonic()
    _tell("building")
    backends = build(BUILD_S)
    seconds["build"] = time.monotonic() - start
    _tell("testing")
    with tempfile.TemporaryDirectory() as folder:
        tests = run_tests(min(TESTS_S, end - time.monotonic()), Path(folder))
    seconds["tests"] = time.monotonic() - start - seconds["build"]
    _tell("timing")
    times = time_operators(end)
    seconds["times"] = time.monotonic() - start - seconds["build"] - seconds["tests"]
    return {
        "machine": describe_gpu(),
        "seconds": {part: round(value, 1) for part, value in seconds.items()},
        "backends": backends,
        "tests": asdict(tests),
        "cases": times.records,
        "missing": times.missing,
        "troubles": list_troubles(backends, tests, times),
    }


def _tell(part: str) -> None:
    print(f"bench.gpu_check: {part}", file=sys.stderr, flush=True)


def describe_gpu() -> list[str]:
    """Machine and versions, a line each."""
    properties = torch.cuda.get_device_properties(0)
    gpu = (
        f"GPU: {properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 1e9:.0f} GB"
    )
    return [gpu, f"CUDA: {torch.version.cuda}, triton {triton.__version__}", *describe(torch.device("cuda"))]


def list_troubles(backends: dict[str, str], tests: Correctness, times: Times) -> list[str]:
    """All that is not well, in words."""
    found = [
        f"backend {name}: {backends.get(name, 'not part of this version')}"
        for name in ("cuda", "triton")
        if backends.get(name) != "available"
    ]
    found += [f"test {failure}" for failure in tests.failures]
    if not tests.passed:
        found.append("tests: none passed")
    found += [f"{case}: {reason}" for case, reason in times.missing.items()]
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
    return f"# {report['machine'][0]}\n\n{as_markdown(rows, header)}\n\n{_graph_table(report['cases'])}\n"


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


if __name__ == "__main__":
    sys.exit(main())
