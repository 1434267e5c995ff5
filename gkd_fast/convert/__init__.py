"""Detectors of other libraries as teachers."""

from gkd_fast.convert.conversion import Converted, Source, convert, convert_file
from gkd_fast.convert.verification import Reached, reached

__all__ = ["Converted", "Reached", "Source", "convert", "convert_file", "reached"]
