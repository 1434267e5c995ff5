"""Operators on a GPU. Without one every test is skipped; GKD_TEST_DEVICE names another device than "cuda"."""

import os

import pytest
import torch

DEVICE = os.environ.get("GKD_TEST_DEVICE", "cuda")


@pytest.fixture
def device():
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device):
    """A device with streams, graphs and checks for synchronisation."""
    if device.type != "cuda":
        pytest.skip("no GPU")
    return device
