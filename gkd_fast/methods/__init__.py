"""Distillation methods beside global knowledge, one file each, alone or combined with it.

A method is a module built from a `Setup` and the settings. Its forward takes a `Step`, all that a training step offers,
in float32 and outside of autocast, and returns its weighted loss terms by name, float32 scalars to be added up. What it
trains beside the student (adapters, generators) are its parameters.
"""

from __future__ import annotations

from torch import nn

from gkd_fast.config_terms import TermConfig
from gkd_fast.methods.base import Setup, Step
from gkd_fast.methods.crosskd import CrossKD
from gkd_fast.methods.cwd import CWD
from gkd_fast.methods.defeat import DeFeat
from gkd_fast.methods.fbkd import FBKD
from gkd_fast.methods.fgd import FGD
from gkd_fast.methods.fgfi import FGFI
from gkd_fast.methods.mgd import MGD
from gkd_fast.methods.pkd import PKD
from gkd_fast.methods.rkd import RKD

METHODS = {
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


def build_terms(names: tuple[str, ...], setup: Setup, config: TermConfig) -> nn.ModuleDict:
    """The methods of the given names, keys of `METHODS`, in their order."""
    return nn.ModuleDict({name: METHODS[name](setup, config) for name in names})


__all__ = ["METHODS", "Setup", "Step", "build_terms"]
