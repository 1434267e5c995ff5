"""Distilling object detectors with global knowledge: any teacher, any student, any training loop.

`Distiller` gives a training loop its distillation terms, and `integrations` fit it to other libraries; `train` and
`study` are whole runs, of which `load` reads the detectors; `methods` and `ops` are what all of it is made of.
Each is loaded when it is used, so that importing the package itself takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gkd_fast import _checkout

__version__ = "0.1.0"

_checkout.add_kernels()

if TYPE_CHECKING:
    from gkd_fast import integrations, methods, ops
    from gkd_fast.distiller import Distiller
    from gkd_fast.runs.finished import load
    from gkd_fast.runs.train import train
    from gkd_fast.study.study import study

__all__ = ["Distiller", "__version__", "integrations", "load", "methods", "ops", "study", "train"]

_DEFINED_IN = {"Distiller": "gkd_fast.distiller", "load": "gkd_fast.runs.finished"}
# `train` and `study` are modules that can be called: importing a module of a name puts it where its function would be.
_MODULES = ("integrations", "methods", "ops", "study", "train")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"gkd_fast.{name}")
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'gkd_fast' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
