"""Whole training steps, compiled by Inductor for a device that computes nothing; minutes, so only with GKD_SLOW=1."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

OTHERS = ("recommended", "fgd", "mgd", "cwd", "pkd", "crosskd")
CASES = [("faster_rcnn", "gkd"), ("faster_rcnn", "fgd"), *(("retinanet", method) for method in ("gkd", *OTHERS))]


@pytest.mark.skipif(os.environ.get("GKD_SLOW") != "1", reason="takes minutes: set GKD_SLOW=1")
@pytest.mark.parametrize(("detector", "method"), CASES)
def test_a_compiled_step_runs(detector: str, method: str) -> None:
    command = [sys.executable, "-m", "bench.gpu.steps", "--loop", f"{detector}:e", "--quick", "--seconds", "1800"]
    command += ["--method", method]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    row = json.loads(ended.stdout.splitlines()[-1])
    assert row["waits"] == 0
    assert 0 < row["launches"] <= 130
