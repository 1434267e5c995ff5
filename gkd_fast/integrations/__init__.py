"""Other libraries' detectors and trainers; each file imports its library where it is used.

- `gkd_fast.integrations.ultralytics`: YOLO 11 and 26, in Ultralytics' own trainer
- `gkd_fast.integrations.transformers`: RT-DETRv2, D-FINE and DETR, in a `transformers.Trainer`
- `gkd_fast.integrations.torchvision`: detectors that resize and normalise inside, also with teachers of the other two
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["torchvision", "transformers", "ultralytics"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
