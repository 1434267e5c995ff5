"""One forward and backward pass: its time, its result, and the memory it takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.measuring.agreement import Result

T = TypeVar("T")
Call = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Sample:
    """Seconds of one pass: forward (autograd recording), and forward and backward together."""

    forward: float
    total: float


def run_pass(
    call: Call, leaves: Sequence[Tensor], cotangents: Sequence[Tensor | None], device: torch.device
) -> tuple[Sample, Result]:
    """Call, then differentiate the outputs that have a cotangent by the leaves; without leaves only call."""
    start = _mark(device)
    outputs = call()
    middle = _mark(device)
    gradients: Sequence[Tensor | None] = ()
    if leaves:
        chosen = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]
        gradients = torch.autograd.grad(
            [outputs[i] for i in chosen],
            leaves,
            [cotangents[i].to(outputs[i].dtype) for i in chosen],
            allow_unused=True,
        )
    forward, total = _seconds(device, start, middle, _mark(device))
    return Sample(forward, total), Result(tuple(o.detach() for o in outputs), gradients)


def make_cotangents(outputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Fixed random gradients in [0.5, 1.5) of the outputs; None for an output without gradient."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(o.shape, generator=generator) + 0.5).to(o.device, o.dtype) if o.requires_grad else None
        for o in outputs
    ]


def _mark(device: torch.device) -> Any:
    """Now; on a GPU the moment when its current stream gets here, so that the host's waiting is not measured."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(device: torch.device, start: Any, *marks: Any) -> list[float]:
    """From the start to each mark, once the last one is reached."""
    if device.type != "cuda":
        return [mark - start for mark in marks]
    torch.cuda.synchronize(device)
    return [start.elapsed_time(mark) / 1e3 for mark in marks]


def peak_extra_bytes(action: Callable[[], T], device: torch.device) -> tuple[int | None, T]:
    """Bytes that the action holds at its peak beyond what was held before it, its result included; and the result.

    CUDA: torch's allocator counts. Linux: the process's resident memory, whose high-water mark the system
    keeps; memory that malloc holds back from earlier work is returned first, or its reuse would go unseen.
    Elsewhere the bytes are None.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    if sys.platform != "linux" or not _reset_high_water_mark():
        return None, action()
    before = _status_bytes("VmRSS")
    result = action()
    return max(0, _status_bytes("VmHWM") - before), result


def _reset_high_water_mark() -> bool:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # another C library, or a sandbox without clear_refs
        return False
    return True


def _status_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status: expected {field}, got none")
    return int(match[1]) * 1024
