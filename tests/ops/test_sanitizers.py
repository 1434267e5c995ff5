"""The hostile inputs under AddressSanitizer and UndefinedBehaviorSanitizer, and proof that these see mistakes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sanitize

HERE = Path(__file__).parent
PLANTED = """
extern "C" float element(const float* values, long index) { return values[index]; }
extern "C" long cell(float coordinate) { return static_cast<long>(coordinate); }
"""
CALLS = """
import ctypes
import torch
library = ctypes.CDLL({library!r})
library.element.restype = ctypes.c_float
values = torch.arange(100.0)
{call}
"""


def run(*arguments):
    command = [sys.executable, str(HERE / "sanitize.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def needs_sanitizers():
    if not sanitize.runtime_libraries():
        pytest.skip("needs g++ with libasan and libubsan")


def test_hostile_inputs():
    files = [HERE / "test_hostile.py", HERE / "test_random.py"]
    with ThreadPoolExecutor(len(files)) as pool:
        for result in pool.map(run, files):
            assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A library built with the kernels' instrumentation whose functions trust their arguments."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cpp").write_text(PLANTED)
    command = [sanitize.COMPILER, *sanitize.FLAGS, "-shared", "-fPIC", "planted.cpp", "-o", "planted.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "planted.so"


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("assert library.element(ctypes.c_void_p(values.data_ptr()), ctypes.c_long(99)) == 99.0", None),
        ("library.element(ctypes.c_void_p(values.data_ptr()), ctypes.c_long(100))", "heap-buffer-overflow"),
        ("library.cell(ctypes.c_float(float('nan')))", "is outside the range of representable values"),
    ],
)
def test_planted_mistakes_are_caught(planted, tmp_path, call, report):
    body = CALLS.format(library=str(planted), call=call).strip().replace("\n", "\n    ")
    (tmp_path / "test_planted.py").write_text(f"def test_planted():\n    {body}\n")
    result = run(tmp_path / "test_planted.py")
    if report is None:
        assert result.returncode == 0, result.stdout + result.stderr
    else:
        assert result.returncode == 1
        assert report in result.stderr, result.stdout + result.stderr
