"""Which implementation of an operator runs: one process-wide choice, resolved for a device."""

import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gkd_fast.ops import _build

BACKENDS = ("auto", "reference", "cpu")


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_selected = _checked(os.environ.get("GKD_BACKEND", "auto"), "environment variable GKD_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select the backend of every operator in this process: "auto", "reference" or "cpu".

    "auto" takes the fastest one that runs here; any other name is taken at its word, and an operator that
    it cannot run raises RuntimeError. The environment variable GKD_BACKEND sets the choice outside of this
    context.
    """
    global _selected
    previous, _selected = _selected, _checked(name, "backend")
    try:
        yield
    finally:
        _selected = previous


def backends() -> dict[str, str]:
    """Status of every backend on this machine: "available", or why it is not."""
    return {"reference": "available", "cpu": load_cpu() or "available"}


def backend_for(operator: str, device: torch.device, kernels: tuple[str, ...] = ("cpu",)) -> str:
    """Backend that runs `operator` on `device`; `kernels` are those it has beside the reference."""
    return _resolve(_selected, operator, device.type, kernels)


@torch.compiler.assume_constant_result
def _resolve(selected: str, operator: str, device: str, kernels: tuple[str, ...]) -> str:
    if selected == "reference":
        return selected
    if selected == "auto":
        return "cpu" if device == "cpu" and "cpu" in kernels and not _missing() else "reference"
    if selected not in kernels or device != "cpu":
        raise RuntimeError(f"{operator}: backend {selected!r} has no kernel for tensors on {device}")
    reason = load_cpu()
    if reason:
        raise RuntimeError(f"{operator}: backend {selected!r} is not available: {reason}")
    return selected


@functools.cache
def _missing() -> bool:
    reason = load_cpu()
    if reason:
        warnings.warn(f"gkd_fast: the slower reference operators run on the CPU: {reason}", stacklevel=2)
    return bool(reason)


@functools.cache
def load_cpu() -> str:
    """Load the compiled operators, compiling them first if need be; returns why it failed, or ""."""
    try:
        library = _build.built_library()
        if library:
            torch.ops.load_library(library)
            return ""
        directory = _build.cache_directory(_build.fingerprint())
        print(f"gkd_fast: compiling the CPU operators into {directory} (once)", file=sys.stderr)
        _build.compile_library(directory)
    except Exception as error:  # whatever is wrong with a toolchain, training goes on with the reference
        return _short_reason(error)
    return ""


def _short_reason(error: Exception) -> str:
    """The line of a compiler's output that tells what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if "error:" in line or "not found" in line]
    return (telling or lines)[0][:200]
