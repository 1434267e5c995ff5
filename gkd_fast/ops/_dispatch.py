"""Which implementation of an operator runs: one process-wide choice, resolved for a device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("auto", "reference", "cpu")


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_selected = _checked(os.environ.get("GKD_BACKEND", "auto"), "environment variable GKD_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select the backend of every operator in this process: "auto", "reference" or "cpu".

    "auto" takes the fastest one that runs here; any other name is taken at its word, and an operator that it
    cannot run raises RuntimeError. The environment variable GKD_BACKEND sets the choice outside of this
    context.
    """
    global _selected
    previous, _selected = _selected, _checked(name, "backend")
    try:
        yield
    finally:
        _selected = previous


def backend_for(operator: str, device: torch.device) -> str:
    """Backend that runs `operator` on `device`."""
    return "reference"


def backends() -> dict[str, str]:
    """Status of every backend on this machine: "available", or why it is not."""
    return {"reference": "available", "cpu": "not built"}
