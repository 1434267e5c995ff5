"""The check of a GPU runs to its end where there is none: its parts, their times, and what a training step asks for.

Values mean nothing here, so that results may differ; all else that the check lists as trouble would be one on a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.gpu.mock import counted
from bench.gpu.mock.zeros import ZeroResults
from bench.gpu.steps import asked_of_the_device, warned_waits
from bench.step.measure import DETECTORS
from gkd_fast import ops


def test_every_part_runs_to_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = {name: reason for name, reason in ops.backends().items() if reason != "available"}
    if missing:
        pytest.skip(f"needs every backend: {missing}")
    gpu_check.main(["--quick", "--out", str(tmp_path)])
    told = [line for line in capfd.readouterr().err.splitlines() if " took " in line]
    with capfd.disabled():
        print("\n".join(["", *told]))
    (path,) = tmp_path.glob("gpu-*.json")
    report = json.loads(path.read_text())
    assert list(report["seconds"]) == ["build", "tests", "steps", "times"]
    assert len(told) == 4
    assert report["missing"] == {}
    assert [trouble for trouble in report["troubles"] if "fused: differs" not in trouble] == []
    steps = {(step["detector"], step["variant"]): step for step in report["steps"]}
    assert set(steps) == {(detector, variant) for detector in DETECTORS for variant in "abc"}
    for (_, variant), step in steps.items():
        assert (step["waits"] == 0) == (variant != "a")
        assert step["launches"] > 100
        assert step["peak_mb"] > 0


def test_what_a_step_asks_for_is_counted() -> None:
    x = torch.ones(8, device="cuda")
    with asked_of_the_device() as asked:
        (x + 1).sum().item()
    assert asked == {"launches": 2, "waits": 1}


def test_torchs_own_warnings_tell_of_the_same_waits() -> None:
    x = torch.ones(8, device="cuda")
    with counted() as counts, warned_waits() as waits:
        for _ in range(3):
            x.sum().item()
        x.nonzero()
        x + 1
    assert len(waits) == counts.waits == 4
    with warned_waits() as waits:
        x + 1
    assert waits == []


def test_results_become_zeros_but_for_what_the_host_wrote() -> None:
    x = torch.tensor([3, 4, 5]).to("cuda")
    with ZeroResults():
        for _ in range(3):  # memory that is used again held other numbers
            results = [x * 2, torch.cat([x, x]), x.new_full((5,), 7)]
            assert [result.tolist() for result in results] == [[0] * 3, [0] * 6, [0] * 5]
            results = [result.view(torch.uint8).copy_(torch.tensor(9, dtype=torch.uint8)) for result in results]
        assert [x.tolist(), x[1:].tolist(), x.clone().tolist()] == [[3, 4, 5], [4, 5], [3, 4, 5]]


def test_a_mask_chooses_one() -> None:
    assert [len(found) for found in torch.where(torch.ones(8, device="cuda") > 0)] == [1]
