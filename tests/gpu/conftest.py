"""Operators on a GPU. Without one every test is skipped; GKD_TEST_DEVICE names another device than "cuda".

Where a device is there but a backend for it is not, the tests fail: they would hold the reference to itself.
"""

import os

import pytest
import torch

from gkd_fast import ops

DEVICE = os.environ.get("GKD_TEST_DEVICE", "cuda")


@pytest.fixture
def device():
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU")
    needed = ("triton", "cuda") if DEVICE.startswith("cuda") else ("cpu",)
    missing = {name: reason for name, reason in ops.backends().items() if name in needed and reason != "available"}
    if missing:
        pytest.fail(f"expected the backends {' and '.join(needed)}: {missing}")
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device):
    """A device with streams, graphs and checks for synchronisation."""
    if device.type != "cuda":
        pytest.skip("no GPU")
    return device
