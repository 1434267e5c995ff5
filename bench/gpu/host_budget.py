"""Budgets of what the operators ask of the device, checked in as bench/gpu/budgets/host.json.

The file holds {"made_with": versions, "cases": {operator: {dtype: {"launches": n, ...}}}}. A case keeps its budget
where each number is exactly that of the file: fewer launches are written down as well. Under other versions of torch
and Triton, whose own operators may launch other kernels, no number may be greater.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from bench.gpu.budget import FOLDER
from bench.gpu.host import HostCost
from bench.gpu.mock import environment

ROOT = Path(__file__).resolve().parents[2]
AMOUNTS = ("launches", "copies", "transfers", "waits")
Budgets = dict[str, dict[str, dict[str, int]]]


def measure_host(*arguments: str) -> list[HostCost]:
    """Runs `bench.gpu.host` on the mock.

    Raises:
        MockUnavailableError: it cannot be built here.
        RuntimeError: the last line of what the process said, where it fails.
    """
    command = [sys.executable, "-m", "bench.gpu.host", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bench.gpu.host: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return [HostCost(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def versions() -> str:
    """What launches beside our own kernels."""
    return f"torch {torch.__version__.split('+')[0]}, triton {triton.__version__}"


def load_host_budgets(path: Path = FOLDER / "host.json") -> tuple[str, Budgets]:
    """Versions that the file was made with, and its budgets.

    Raises:
        ValueError: the file is missing or not of this form.
    """
    try:
        content = json.loads(path.read_text())
        return content["made_with"], content["cases"]
    except (OSError, KeyError, ValueError) as error:
        command = "python -m bench.gpu_report --host --write-budgets"
        raise ValueError(f"{path}: expected budgets ({command}), got {error}") from None


def write_host_budgets(costs: Sequence[HostCost], path: Path = FOLDER / "host.json") -> Path:
    """Write what was counted as the budgets, a line a case."""
    lines: dict[str, list[str]] = {}
    for cost in costs:
        amounts = json.dumps({name: getattr(cost, name) for name in AMOUNTS})
        lines.setdefault(cost.op, []).append(f"   {json.dumps(cost.dtype)}: {amounts}")
    cases = [f"  {json.dumps(op)}: {{\n" + ",\n".join(rows) + "\n  }" for op, rows in lines.items()]
    head = f'{{\n "made_with": {json.dumps(versions())},\n "cases": {{\n'
    path.write_text(head + ",\n".join(cases) + "\n }\n}\n")
    return path


def broken_host_budgets(costs: Sequence[HostCost], made_with: str, budgets: Budgets) -> list[str]:
    """What differs from the budgets, in words; empty: nothing."""
    exact = made_with == versions()
    found = []
    for cost in costs:
        budget = budgets.get(cost.op, {}).get(cost.dtype)
        if budget is None:
            found.append(f"{cost.op}, {cost.dtype}: expected a budget, got none")
            continue
        for name in AMOUNTS:
            got, expected = getattr(cost, name), budget[name]
            if got > expected or (exact and got != expected):
                found.append(f"{cost.op}, {cost.dtype}: {name}: {'' if exact else 'at most '}{expected}, got {got}")
    return found
