"""Which implementation of an operator runs: one process-wide choice, resolved for a device."""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from gkd_fast.errors import InputError
from gkd_fast.ops import _build, _build_cuda

F = TypeVar("F", bound=Callable[..., Any])
BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
OLDEST_DEVICE = (8, 0)  # Ampere: bfloat16, and copies into shared memory beside the arithmetic


class BackendError(InputError, RuntimeError):
    """The backend that was named cannot run an operator; a command line ends in the line that says so."""


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_selected = _checked(os.environ.get("GKD_BACKEND", "auto"), "environment variable GKD_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select the backend of every operator in this process: one of `BACKENDS`.

    "auto" takes the fastest one that runs here: "cpu" (C++) for tensors of the CPU, "triton" or "cuda" (CUDA C++),
    whichever the operator has, for those of a GPU, else "reference". Any other name is taken at its word, and an
    operator that it cannot run raises RuntimeError. The environment variable GKD_BACKEND sets the choice outside
    of this context. With TRITON_INTERPRET=1, "triton" runs on the CPU, in Triton's interpreter.
    """
    global _selected
    previous, _selected = _selected, _checked(name, "backend")
    try:
        yield
    finally:
        _selected = previous


def backends() -> dict[str, str]:
    """Status of every backend on this machine: "available", or why it is not."""
    return {"reference": "available"} | {name: load() or "available" for name, load in _LOADERS.items()}


def constant(function: F) -> F:
    """What `torch.compiler.assume_constant_result` does; to call that would load torch's compiler, for two seconds."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010 - type checkers know no such attribute
    return function


def backend_for(operator: str, device: torch.device, kernels: tuple[str, ...] = ("cpu",)) -> str:
    """Backend that runs `operator` on `device`.

    `kernels` are those that it has for these inputs beside the reference; the reference is among them where
    it is meant to run on devices that the others are not for.
    """
    return _resolve(_selected, operator, device.type, kernels)


@constant
def _resolve(selected: str, operator: str, device: str, kernels: tuple[str, ...]) -> str:
    if selected == "reference":
        return selected
    if selected == "auto":
        fitting = next((name for name in kernels if _DEVICES.get(name, device) == device), None)
        if fitting is None and device != "meta":
            _warn(f"{operator} has no kernel for such tensors on {device}", device)
        reason = _LOADERS[fitting]() if fitting in _LOADERS else ""
        if reason:
            _warn(reason, device)
        return "reference" if reason or fitting is None else fitting
    fits = _DEVICES[selected] == device or (selected == "triton" and device == "cpu" and _interpreting())
    if selected not in kernels or not fits:
        raise BackendError(f"{operator}: backend {selected!r} has no kernel for such tensors on {device}")
    reason = _LOADERS[selected]()
    if reason:
        raise BackendError(f"{operator}: backend {selected!r} is not available: {reason}")
    return selected


def implementation(operator: torch._ops.OpOverload, backend: str, device: torch.device) -> Callable[..., Any]:
    """What runs a raw operator: torch finds it by the device, but for Triton's interpreter.

    The interpreter takes tensors of the CPU, where torch would find the compiled kernel.
    """
    if backend == "triton" and device.type == "cpu":
        from gkd_fast.kernels.launchers import LAUNCHERS

        return LAUNCHERS[operator._schema.name.removeprefix("gkd_fast::")]
    return operator


@functools.cache
def _warn(reason: str, device: str) -> None:
    name = "the CPU" if device == "cpu" else device
    warnings.warn(f"gkd_fast: the slower reference operators run on {name}: {reason}", stacklevel=2)


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


@functools.cache
def load_cuda() -> str:
    """Load the CUDA C++ operators, compiling them first if need be; returns why it failed, or ""."""
    reason = _unusable_device()
    if reason:
        return reason
    try:
        _build_cuda.load()
    except Exception as error:  # no toolkit, or one that does not suit this torch
        return _short_reason(error)
    return ""


@functools.cache
def load_triton() -> str:
    """Import the Triton operators and register them; returns why they cannot run here, or ""."""
    reason = "" if _interpreting() else _unusable_device()
    if reason:
        return reason
    try:
        import gkd_fast.kernels.launchers  # noqa: F401

    except Exception as error:  # no triton for this platform, or one that does not suit this torch
        return _short_reason(error)
    return "" if _interpreting() else triton_failure()


@functools.cache
def triton_failure() -> str:
    """Why Triton can launch no kernel on the GPU of this machine, or ""."""
    try:
        import triton

        # Compiles the driver's launcher: the first thing that fails where there is no C compiler.
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return _short_reason(error)
    return ""


_LOADERS = {"cpu": load_cpu, "triton": load_triton, "cuda": load_cuda}
_DEVICES = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _unusable_device() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.hip:
        return f"expected an NVIDIA device, got one of AMD (ROCm {torch.version.hip})"
    found = torch.cuda.get_device_capability()
    if found < OLDEST_DEVICE:
        return f"expected a device of compute capability 8.0 or later, got {found[0]}.{found[1]}"
    return ""


def _short_reason(error: Exception) -> str:
    """The line of a compiler's output, or the error at the root of a failed load, that tells what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if "error:" in line or "not found" in line or "fatal" in line]
    text = (telling or lines)[0][:200]
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    cause = (str(root).strip().splitlines() or [type(root).__name__])[0][:200]
    return text if root is error or cause in text else f"{text}: {cause}"
