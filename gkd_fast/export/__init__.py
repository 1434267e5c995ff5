"""Trained detectors for use without this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.export.comparison import differences
    from gkd_fast.export.detector import Exported, export_detector

__all__ = [
    "Exported",
    "differences",
    "export_detector",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "comparison": "differences",
        "detector": "Exported export_detector",
    },
)
