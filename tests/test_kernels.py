"""Runs tests/kernels in processes where triton is its interpreter, two at once."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "kernels"
PROCESSES = 2


def run(file):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--color=no", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )


def test_kernels_in_the_checked_interpreter(capsys):
    files = sorted(FOLDER.glob("test_*.py"), key=lambda file: -file.stat().st_size)  # the longest first, about
    with ThreadPoolExecutor(PROCESSES) as pool:
        children = list(pool.map(run, files))
    for child in children:
        if child.returncode:
            text = f"{FOLDER.name}: pytest ended with {child.returncode}\n{child.stdout}{child.stderr}"
            pytest.fail(text, pytrace=False)
    with capsys.disabled():
        passed = sum(int(re.search(r"(\d+) passed", child.stdout)[1]) for child in children)
        print(f" tests/kernels: {passed} passed", end="")
