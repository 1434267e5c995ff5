"""Tiny networks and images for the tests with other libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

SMALL = ["--images", "6", "--size", "96", "--batch", "2"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_cells():
    """Six images of 96 pixels, as the examples have them."""
    import cells

    return cells.load(cells.options("").parse_args(SMALL))
