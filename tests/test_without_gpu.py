"""Runs tests/without_gpu in a process whose CUDA device computes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.mock import MockUnavailableError, environment

FOLDER = Path(__file__).parent / "without_gpu"


def test_the_gpu_path_on_a_device_that_computes_nothing(capsys):
    try:
        variables = environment(devices=2)
    except MockUnavailableError as error:
        pytest.skip(f"tests/without_gpu {error}")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "--color=no", "-rs", str(FOLDER)],
        env=variables | {"GKD_BACKEND": "auto"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    if child.returncode:
        pytest.fail(f"{FOLDER.name}: pytest ended with {child.returncode}\n{child.stdout}{child.stderr}", pytrace=False)
    told = [line for line in child.stdout.splitlines() if line.startswith(("SKIPPED", "bench.gpu_check:"))]
    with capsys.disabled():
        print("\n".join(["", *told, f" tests/without_gpu: {child.stdout.strip().splitlines()[-1]}"]), end="")
