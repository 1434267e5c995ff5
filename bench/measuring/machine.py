"""The machine under test: what it is, and how fast it copies and multiplies."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

import gkd_fast
from bench.measuring.passes import Call
from gkd_fast import ops

COPY_BYTES = 256 << 20  # several times the largest cache
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}  # rows and columns of the square matrices: enough for all cores


@dataclass(frozen=True)
class Floor:
    """A run whose rate nothing that moves or computes as much can beat by far."""

    call: Call
    amount: float  # bytes read and written, or multiplications and additions


def make_floors(dtype: torch.dtype, device: torch.device) -> dict[str, Floor]:
    """Copy into memory in use, copy into memory fresh from the system, and matrix product in a dtype."""
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    return {
        "copy": Floor(lambda: (target.copy_(source),), 2 * COPY_BYTES),
        "fresh copy": Floor(lambda: (source.clone(),), 2 * COPY_BYTES),
        "product": product_floor(dtype, device),
    }


def product_floor(dtype: torch.dtype, device: torch.device) -> Floor:
    """Matrix product in a dtype."""
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return Floor(lambda: (torch.mm(a, b, out=product),), 2 * size**3)


def describe(device: torch.device) -> list[str]:
    """Machine, threads, versions and backends, a line each."""
    processor = f"{_processor()}, {torch.get_num_threads()} threads"
    accelerator = f"; {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gkd_fast": gkd_fast.__version__,
    }
    backends = ", ".join(f"{name} ({status})" for name, status in ops.backends().items())
    return [
        f"Machine: {processor}{accelerator}, {platform.system()} {platform.release()}",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"Backends: {backends}",
    ]


def _processor() -> str:
    """The processor's name and its vector extensions, which decide the rates."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    name = match[1] if match else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
