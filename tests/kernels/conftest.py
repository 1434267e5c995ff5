"""Triton kernels on the CPU: this folder runs in a process of its own, in Triton's interpreter.

TRITON_INTERPRET decides when triton is imported, for the whole process, and torch.compile needs the real one.
`pytest tests/kernels` sets it; a run of other tests leaves the folder to tests/test_kernels.py, and skips those of its
files that it names.
"""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config):
    paths = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    if paths and all(path.is_relative_to(HERE) for path in paths):
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_ignore_collect(collection_path):
    return True if collection_path.name.startswith("test_") and not _interpreting() else None


@pytest.fixture(autouse=True)
def checker():
    """Every kernel that the test launches is checked; `checker.launches` lists their names."""
    if not _interpreting():
        pytest.skip("expected a process in Triton's interpreter: pytest tests/kernels alone")
    from checker import checked_interpreter

    with checked_interpreter() as checks:
        yield checks


@pytest.fixture(autouse=True)
def _undefined_memory(monkeypatch):
    """New memory holds NaN, or large integers: a kernel that leaves an element out is seen."""
    import torch

    def filled(create):
        def create_filled(*args, **options):
            tensor = create(*args, **options)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 85)

        return create_filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
