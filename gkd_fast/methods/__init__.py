"""Distillation methods, one file each, alone or combined.

A method is a module built from a `Setup` and the settings. Its forward takes a `Step`, all that a training step offers,
and returns its weighted loss terms by name, float32 scalars to be added up. What it trains beside the student
(adapters, generators) are its parameters; what it needs beside maps and boxes stands in `needs`.
"""

from gkd_fast.methods.base import Setup, Step
from gkd_fast.methods.grammar import Method, resolved
from gkd_fast.methods.registry import MASKED, METHODS, build_methods, check_needs, uses_prototypes
from gkd_fast.methods.settings import Settings

__all__ = [
    "MASKED",
    "METHODS",
    "Method",
    "Settings",
    "Setup",
    "Step",
    "build_methods",
    "check_needs",
    "resolved",
    "uses_prototypes",
]
