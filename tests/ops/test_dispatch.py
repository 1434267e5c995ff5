import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gkd_fast
from gkd_fast import ops

PROBE = """
import torch
from gkd_fast import ops
x = torch.eye(3)[None]
for _ in range(2):
    assert torch.equal(ops.prototype_projection(x, x), x)
print(ops.backends()["cpu"])
"""


def run(code, **environment):
    """Run code in a fresh process; the package is found whether it is installed or not."""
    root = str(Path(gkd_fast.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *code],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_explicit_backend_is_taken_at_its_word():
    x = torch.randn(1, 2, 3, device="meta")
    with ops.use_backend("cpu"), pytest.raises(RuntimeError, match="'cpu' has no kernel for such tensors on meta"):
        ops.prototype_projection(x, x)
    with (
        pytest.raises(ValueError, match="backend: expected one of auto, reference, cpu, triton, cuda, got 'gpu'"),
        ops.use_backend("gpu"),
    ):
        pass


def test_context_restores_the_choice_after_an_error():
    with pytest.raises(ZeroDivisionError), ops.use_backend("reference"):
        raise ZeroDivisionError
    from gkd_fast.ops import _dispatch

    assert _dispatch._selected == os.environ.get("GKD_BACKEND", "auto")


def test_command_lists_backends():
    result = run(["-m", "gkd_fast.ops"])
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(ops.backends())


def test_unknown_backend_in_the_environment():
    result = run(["-c", "import gkd_fast.ops"], GKD_BACKEND="gpu")
    assert result.returncode != 0
    assert "GKD_BACKEND: expected one of auto, reference, cpu, triton, cuda, got 'gpu'" in result.stderr


def test_without_a_compiler_the_reference_runs_with_one_warning(tmp_path):
    code = "from gkd_fast.ops import _build\n_build.built_library = lambda: None\n" + PROBE
    result = run(["-c", code], XDG_CACHE_HOME=str(tmp_path), CXX="/nonexistent/c++")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("the slower reference operators run on the CPU") == 1
    assert result.stdout.strip() not in ("", "available")


def test_a_backend_that_cannot_run_says_why():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for name in ("triton", "cuda"):
        assert ops.backends()[name] == "no CUDA device"
    x = torch.randn(1, 2, 3)
    with ops.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' has no kernel for such tensors on cpu"):
        ops.prototype_projection(x, x)


def test_float64_is_not_for_triton():
    code = """
import torch
from gkd_fast import ops
x = torch.eye(3, dtype=torch.float64)[None]
with ops.use_backend("triton"):
    ops.prototype_projection(x, x)
"""
    result = run(["-c", code], TRITON_INTERPRET="1")
    assert "BackendError: prototype_projection: backend 'triton' has no kernel for such tensors on cpu" in result.stderr
