"""Whole training steps, compiled by Inductor for a device that computes nothing; minutes, so only with GKD_SLOW=1."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

LAUNCHES = {
    ("faster_rcnn", "gkd"): 115,
    ("faster_rcnn", "fgd"): 65,
    ("retinanet", "gkd"): 125,
    ("retinanet", "recommended"): 130,
    ("retinanet", "fgd"): 76,
    ("retinanet", "mgd"): 87,
    ("retinanet", "cwd"): 75,
    ("retinanet", "pkd"): 75,
    ("retinanet", "crosskd"): 75,
}
"""Of the host, of which a captured graph is one: the most that each may need."""


@pytest.mark.skipif(os.environ.get("GKD_SLOW") != "1", reason="takes minutes: set GKD_SLOW=1")
@pytest.mark.parametrize(("detector", "method"), LAUNCHES)
def test_a_compiled_step_runs(detector: str, method: str) -> None:
    command = [sys.executable, "-m", "bench.gpu.steps", "--loop", f"{detector}:e", "--quick", "--seconds", "1800"]
    command += ["--method", method]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    row = json.loads(ended.stdout.splitlines()[-1])
    assert row["waits"] == 0
    assert 0 < row["launches"] <= LAUNCHES[detector, method]
