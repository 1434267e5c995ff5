"""Detectors of other libraries as teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.convert.conversion import Converted, Source, convert, convert_file
    from gkd_fast.convert.verification import Reached, reached

__all__ = ["Converted", "Reached", "Source", "convert", "convert_file", "reached"]

__getattr__, __dir__ = lazily(
    __name__,
    {"conversion": "Converted Source convert convert_file", "verification": "Reached reached"},
)
