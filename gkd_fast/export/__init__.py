"""Trained detectors for use without this package."""

from gkd_fast.export.comparison import differences
from gkd_fast.export.detector import Exported, export_detector

__all__ = ["Exported", "differences", "export_detector"]
