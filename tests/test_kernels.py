"""Runs tests/kernels in a process where triton is its interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "kernels"


def test_kernels_in_the_checked_interpreter(capsys):
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "--color=no", str(FOLDER)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    if child.returncode:
        pytest.fail(f"{FOLDER.name}: pytest ended with {child.returncode}\n{child.stdout}{child.stderr}", pytrace=False)
    with capsys.disabled():
        print(f" tests/kernels: {child.stdout.strip().splitlines()[-1]}", end="")
