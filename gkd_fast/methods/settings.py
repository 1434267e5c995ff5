"""Settings of all methods, each with its method, in one flat set of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gkd_fast.methods.crosskd import CrossKDSettings
from gkd_fast.methods.cwd import CWDSettings
from gkd_fast.methods.defeat import DeFeatSettings
from gkd_fast.methods.fbkd import FBKDSettings
from gkd_fast.methods.fgd import FGDSettings
from gkd_fast.methods.fgfi import FGFISettings
from gkd_fast.methods.gkd.settings import GKDSettings
from gkd_fast.methods.mgd import MGDSettings
from gkd_fast.methods.pkd import PKDSettings
from gkd_fast.methods.rkd import RKDSettings
from gkd_fast.options import MAIN, Alias
from gkd_fast.ranges import POSITIVE


@dataclass(frozen=True, kw_only=True)
class Settings(
    CrossKDSettings,
    MGDSettings,
    FGDSettings,
    PKDSettings,
    CWDSettings,
    RKDSettings,
    FBKDSettings,
    DeFeatSettings,
    FGFISettings,
    GKDSettings,
):
    """Which methods distil, and the settings of each.

    A pair of numbers holds the value of two-stage detectors, then the one of one-stage detectors.
    """

    method: Annotated[str, MAIN, Alias("terms")] = "gkd"
    """Distillation methods, joined by "+": gkd (global knowledge), fgfi, defeat, fbkd, rkd, cwd, pkd, fgd, mgd, crosskd
    (RetinaNet only). NAME@FACTOR multiplies the method's weights; "+robust" is --robust-masks."""
    robust_masks: bool = False
    """Weigh every ground-truth box in the masks of fgfi, defeat and fgd by its robust weight (paper, robust
    distilling); needs prototypes also where gkd is not among the methods. Off: the masks as published."""
    feature_units: Literal["teacher", "published"] = "teacher"
    """What feature losses are measured in: the teacher's own deviation on each level, and sums over cells and channels
    as of 256 channels and images of 800 x 1344, so that a weight means the same for every teacher and image size; or
    the maps as they are (published code)."""
    auto_balance: bool = False
    """Scale every distillation term so that the norm of its gradient on the student's feature pyramid is
    balance_ratio times that of the detector's own losses (measured every grad_norm_steps, or every 50 steps)."""
    balance_ratio: Annotated[float, POSITIVE] = 0.25
    """Gradient norm of a balanced distillation term, as a fraction of that of the detector's own losses."""
