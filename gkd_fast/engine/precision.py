"""Mixed precision: which number format runs where."""

from __future__ import annotations

import torch

from gkd_fast.config import RunConfig
from gkd_fast.errors import InputError


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where one is there.

    Raises:
        InputError: if a GPU is asked for and none is there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device: expected a GPU for cuda, torch sees none")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


class Precision:
    """Autocast and, for fp16, the gradient scaler."""

    def __init__(self, run: RunConfig, device: torch.device) -> None:
        if run.amp and run.amp_dtype == "fp16" and device.type == "cpu":
            raise InputError("--amp-dtype: fp16 needs a GPU; expected bf16 on the CPU")
        self.enabled = run.amp
        self.dtype = torch.float16 if run.amp_dtype == "fp16" else torch.bfloat16
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.amp and run.amp_dtype == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of every forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled)
