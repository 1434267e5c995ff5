"""Distillation methods, one file each, alone or combined.

A method is a module built from a `Setup` and the settings. Its forward takes a `Step`, all that a training step offers,
and returns its weighted loss terms by name, float32 scalars to be added up. What it trains beside the student
(adapters, generators) are its parameters; what it needs beside maps and boxes stands in `names.NEEDED`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.methods.base import Setup, Step
    from gkd_fast.methods.grammar import Method, resolved
    from gkd_fast.methods.names import MASKED, check_needs
    from gkd_fast.methods.registry import METHODS, build_methods, uses_prototypes
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

__getattr__, __dir__ = lazily(
    __name__,
    {
        "base": "Setup Step",
        "grammar": "Method resolved",
        "names": "MASKED check_needs",
        "registry": "METHODS build_methods uses_prototypes",
        "settings": "Settings",
    },
)
