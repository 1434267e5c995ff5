"""Detectors of other libraries as teachers."""

from gkd_fast.convert.conversion import Converted, Source, convert, convert_file

__all__ = ["Converted", "Source", "convert", "convert_file"]
