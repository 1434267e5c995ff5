"""All methods by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gkd_fast.methods.base import Setup
from gkd_fast.methods.crosskd import CrossKD
from gkd_fast.methods.cwd import CWD
from gkd_fast.methods.defeat import DeFeat
from gkd_fast.methods.fbkd import FBKD
from gkd_fast.methods.fgd import FGD
from gkd_fast.methods.fgfi import FGFI
from gkd_fast.methods.gkd.method import GKD
from gkd_fast.methods.mgd import MGD
from gkd_fast.methods.names import MASKED
from gkd_fast.methods.pkd import PKD
from gkd_fast.methods.rkd import RKD
from gkd_fast.methods.settings import Settings

METHODS: dict[str, type[nn.Module]] = {
    "gkd": GKD,
    "fgfi": FGFI,
    "defeat": DeFeat,
    "fbkd": FBKD,
    "rkd": RKD,
    "cwd": CWD,
    "pkd": PKD,
    "fgd": FGD,
    "mgd": MGD,
    "crosskd": CrossKD,
}


def build_methods(names: Sequence[str], setup: Setup, settings: Settings) -> nn.ModuleDict:
    """The modules of the given names, in their order."""
    return nn.ModuleDict({name: METHODS[name](setup, settings) for name in names})


def uses_prototypes(settings: Settings) -> bool:
    """Whether the methods need prototypes; of settings whose ``method`` holds plain names."""
    names = settings.method.split("+")
    return "gkd" in names or (settings.robust_masks and any(name in MASKED for name in names))
