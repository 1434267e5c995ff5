"""A GPU that is not there: this folder runs in a process of its own, on the mock device of bench/gpu/mock.

The mock takes the place of CUDA's driver when a process starts; tests/test_without_gpu.py starts it.
"""

import pytest
import torch

from bench.gpu.mock import is_loaded


def pytest_ignore_collect(collection_path):
    return True if collection_path.name.startswith("test_") and not is_loaded() else None


@pytest.fixture(autouse=True)
def _no_cudnn(monkeypatch):
    """cuDNN is not mocked; without it torch takes its own convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
