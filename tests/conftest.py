import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gkd_fast.cli.waiting import limit_spinning

# Before any test loads torch: on a busy machine threads that spin at barriers take a hundred times as long.
limit_spinning(os.environ)
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Finds a folder of real data in GKD_DATA_DIR (default: shared/data beside the repository), else skips the test."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("GKD_DATA_DIR", default))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"{root / name} not found: set GKD_DATA_DIR to a folder that has {name}")
        return root / name

    return find
