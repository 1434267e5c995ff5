"""What was asked of the device, within a process that runs on the mock."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_DEVICES = 8


class _Counters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("launches", "copies", "transfers", "waits", "captured")),
        ("launches_of", ctypes.c_uint64 * MOST_DEVICES),
    )


@dataclass
class Counts:
    """Numbers of calls.

    Attributes:
        launches: kernels, matrix products of cuBLAS, memory set to a value.
        copies: of memory within a device.
        transfers: copies between host and device, or two devices.
        waits: of the host for the device.
        captured: launches that are part of a graph.
        launches_of: launches of each device.
    """

    launches: int = 0
    copies: int = 0
    transfers: int = 0
    waits: int = 0
    captured: int = 0
    launches_of: tuple[int, ...] = (0,) * MOST_DEVICES


def is_loaded() -> bool:
    """Whether this process runs on the mock."""
    return hasattr(ctypes.CDLL(None), "mock_counts")


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts what is asked of the device within; filled at the end."""
    counts, before = Counts(), _now()
    yield counts
    after = _now()
    for name in ("launches", "copies", "transfers", "waits", "captured"):
        setattr(counts, name, getattr(after, name) - getattr(before, name))
    counts.launches_of = tuple(b - a for a, b in zip(before.launches_of, after.launches_of, strict=True))


def _now() -> Counts:
    function = ctypes.CDLL(None).mock_counts
    function.restype = ctypes.POINTER(_Counters)
    counters = function().contents
    return Counts(
        **{name: getattr(counters, name) for name, _ in _Counters._fields_[:-1]},
        launches_of=tuple(counters.launches_of),
    )
