"""Two processes under DDP train as one does, also where one of them has no boxes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("share_steps.py")
CASES = (4, 2)  # images of four with boxes: in the second case one of two processes has none


def run(processes: int, *arguments: object) -> None:
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run(processes, folder, *CASES)
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("with_boxes", CASES)
def test_two_processes_are_one(with_boxes: int, found: list[dict]) -> None:
    alone, first, second = (part[with_boxes] for part in found)
    for one, other in zip(first["distiller"] + first["student"], second["distiller"] + second["student"], strict=True):
        assert torch.equal(one, other)
    # FGD and CWD are means of each process's share; with the same number of images in each these are the whole's.
    for name, value in alone["terms"].items():
        mean = (first["terms"][name] + second["terms"][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    for kind in ("student", "distiller"):
        for own, expected in zip(first[kind], alone[kind], strict=True):
            scale = float(expected.abs().max())
            # The bias before CWD's softmax has gradient 0, but for rounding.
            torch.testing.assert_close(own, expected, rtol=1e-3, atol=max(1e-4 * scale, 1e-7))
    assert torch.equal(first["image_ids"], alone["image_ids"])
    torch.testing.assert_close(first["prototypes"], alone["prototypes"])
    assert torch.equal(second["prototypes"], first["prototypes"])
