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

ROOT = Path(__file__).resolve().parents[2]
PLAN = (("float32", True), ("bfloat16", False))  # dtypes, and whether torch.compile is timed, which takes longest
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


def run_tests(seconds: float, folder: Path, run: Run = run_python) -> Correctness:
    """Run tests/gpu; `folder` takes the tests' own report."""
    report = folder / "tests.xml"
    outcome = run(["-m", "pytest", "-q", "--color=no", f"--junitxml={report}", "tests/gpu"], seconds)
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
    """Records of `bench.gpu.times`, and the cases without one, with the reason."""

    records: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def time_operators(end: float, run: Run = run_python, clock: Callable[[], float] = time.monotonic) -> Times:
    """Time all operators until the clock says `end`; a case that takes its process down is not tried again."""
    times = Times()
    for dtype, compiled in PLAN:
        waiting = list(CASES)
        while waiting:
            left = end - clock()
            if left <= 0:
                times.missing |= {f"{op}, {dtype}": "not reached, out of time" for op in waiting}
                break
            flags = ["--compiled"] if compiled else []
            options = ["--op", *waiting, "--dtype", dtype, "--seconds", f"{left:.0f}", *flags]
            outcome = run(["-m", "bench.gpu.times", *options], left)
            records = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
            times.records += records
            waiting = waiting[len(records) :]
            if waiting and (outcome.code != 0 or not records):
                times.missing[f"{waiting.pop(0)}, {dtype}"] = outcome.reason
    return times
