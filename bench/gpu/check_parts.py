"""The parts of `bench.gpu_check`, each in processes of its own and within its share of the time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.operators.cases import CASES
from bench.step.loops import VARIANTS
from bench.step.measure import DETECTORS

ROOT = Path(__file__).resolve().parents[2]
PLAN = (("float32", True), ("bfloat16", False))  # dtypes, and whether torch.compile is timed, which takes longest
STEP_VARIANTS = ("a", "b", "c", "e")  # of bench.step
PROBE = "import json; from gkd_fast import ops; print(json.dumps(ops.backends()))"


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code (None: stopped for want of time) and what it printed."""

    code: int | None
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        if self.code is None:
            return "stopped, out of time"
        lines = [line for line in self.err.splitlines() if line.strip()]
        return f"exit code {self.code}: {lines[-1].strip() if lines else 'no message'}"[:300]


Run = Callable[[Sequence[str], float], Outcome]


def run_python(arguments: Sequence[str], seconds: float) -> Outcome:
    """Run this Python in the repository's root for at most some seconds."""
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds), check=False)
    except subprocess.TimeoutExpired as stopped:
        return Outcome(None, *(_text(stream) for stream in (stopped.stdout, stopped.stderr)))
    return Outcome(done.returncode, done.stdout, done.stderr)


def _text(stream: bytes | str | None) -> str:
    return stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""


def build(seconds: float, run: Run = run_python) -> dict[str, str]:
    """Status of every backend, after building what has to be built."""
    outcome = run(["-c", PROBE], seconds)
    if outcome.code != 0:
        return {"cuda": outcome.reason, "triton": outcome.reason}
    return json.loads(outcome.out.splitlines()[-1])


@dataclass
class Correctness:
    """What came of the correctness tests."""

    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)


def run_tests(seconds: float, folder: Path, run: Run = run_python, *, quick: bool = False) -> Correctness:
    """Run tests/gpu, with `quick` only that nothing waits; `folder` takes the tests' own report."""
    report, chosen = folder / "tests.xml", ["-k", "no_synchronisation"] if quick else []
    outcome = run(["-m", "pytest", "-q", "--color=no", f"--junitxml={report}", "tests/gpu", *chosen], seconds)
    if not report.is_file():
        return Correctness(failures=[f"pytest tests/gpu: {outcome.reason}"])
    tests = Correctness()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = next((child for kind in ("failure", "error") if (child := case.find(kind)) is not None), None)
        if bad is not None:
            message = (bad.get("message") or "").splitlines()
            tests.failures.append(f"{case.get('name')}: {message[0][:200] if message else 'failed'}")
        elif case.find("skipped") is not None:
            tests.skipped += 1
        else:
            tests.passed += 1
    return tests


@dataclass
class Times:
    """Records of `bench.gpu.times` or `bench.gpu.steps`, and the cases without one, with the reason."""

    records: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def time_operators(
    end: float, run: Run = run_python, clock: Callable[[], float] = time.monotonic, *, quick: bool = False
) -> Times:
    """Time all operators until the clock says `end`; a case that takes its process down is not tried again.

    Args:
        end: by the clock.
        run, clock: of the processes.
        quick: small shapes, one dtype, and nothing is compiled.
    """
    times = Times()
    for dtype, compiled in PLAN[1:] if quick else PLAN:
        options = ["--dtype", dtype, *(["--compiled"] if compiled else []), *(["--quick"] if quick else [])]
        _in_turn(times, "bench.gpu.times", "--op", {op: f"{op}, {dtype}" for op in CASES}, options, end, run, clock)
    return times


def measure_steps(
    end: float, run: Run = run_python, clock: Callable[[], float] = time.monotonic, *, quick: bool = False
) -> Times:
    """Measure a training step of every loop and detector until the clock says `end`, what compiles last.

    Args:
        end: by the clock.
        run, clock: of the processes.
        quick: tiny networks, and nothing is compiled.
    """
    steps = Times()
    variants = [variant for variant in STEP_VARIANTS if not (quick and VARIANTS[variant].compiled)]
    loops = {f"{d}:{v}": f"{d}, {VARIANTS[v].title}" for v in variants for d in DETECTORS}
    _in_turn(steps, "bench.gpu.steps", "--loop", loops, ["--quick"] if quick else [], end, run, clock)
    return steps


def _in_turn(
    times: Times,
    module: str,
    option: str,
    named: dict[str, str],
    options: Sequence[str],
    end: float,
    run: Run,
    clock: Callable[[], float],
) -> None:
    """Let processes of a module write a line for each name; one that ends its process is left out by the next."""
    waiting = list(named)
    while waiting:
        left = end - clock()
        if left <= 0:
            times.missing |= {named[name]: "not reached, out of time" for name in waiting}
            return
        outcome = run(["-m", module, option, *waiting, *options, "--seconds", f"{left:.0f}"], left)
        records = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
        times.records += records
        waiting = waiting[len(records) :]
        if waiting and (outcome.code != 0 or not records):
            times.missing[named[waiting.pop(0)]] = outcome.reason
