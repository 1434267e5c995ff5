"""Settings of all methods, in one flat set of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gkd_fast.methods.gkd.settings import GKDSettings
from gkd_fast.options import MAIN, Alias
from gkd_fast.ranges import FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True, kw_only=True)
class FGFISettings:
    """Settings of FGFI."""

    fgfi_weight: Annotated[float, NOT_NEGATIVE] = 0.01
    """FGFI: weight of the imitation (published code)."""
    fgfi_threshold: Annotated[float, FRACTION] = 0.5
    """FGFI: fraction of a box's largest IoU above which an anchor is near it (paper's psi)."""


@dataclass(frozen=True, kw_only=True)
class DeFeatSettings:
    """Settings of DeFeat."""

    defeat_foreground_weight: Annotated[float, NOT_NEGATIVE] = 3.0
    """DeFeat: weight of the features in objects (published configuration for Faster R-CNN on VOC)."""
    defeat_background_weight: Annotated[float, NOT_NEGATIVE] = 12.0
    """DeFeat: weight of the features outside of objects (same source)."""
    defeat_positive_weight: Annotated[float, NOT_NEGATIVE] = 2.0
    """DeFeat: weight of the class logits of positive proposals (same source; two-stage only)."""
    defeat_negative_weight: Annotated[float, NOT_NEGATIVE] = 2.0
    """DeFeat: weight of the class logits of negative proposals (same source; two-stage only)."""


@dataclass(frozen=True, kw_only=True)
class FBKDSettings:
    """Settings of FBKD; a pair holds the value of two-stage detectors, then that of one-stage detectors."""

    fbkd_temperature: Annotated[tuple[float, float], POSITIVE] = (0.5, 0.1)
    """FBKD: temperature of the attention masks (published code); two-stage, one-stage."""
    fbkd_masked_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (7e-5, 4.2e-4)
    """FBKD: weight of the masked feature imitation (published code); two-stage, one-stage."""
    fbkd_attention_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (4e-3, 2.4e-2)
    """FBKD: weight of the attention imitation (same source); two-stage, one-stage."""
    fbkd_relation_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (7e-5, 4.2e-4)
    """FBKD: weight of the non-local relation (same source); two-stage, one-stage."""


@dataclass(frozen=True, kw_only=True)
class RKDSettings:
    """Settings of RKD."""

    rkd_distance_weight: Annotated[float, NOT_NEGATIVE] = 25.0
    """RKD: weight of the distances (RKD-DA, as in OpenMMLab's implementation)."""
    rkd_angle_weight: Annotated[float, NOT_NEGATIVE] = 50.0
    """RKD: weight of the angles (same source)."""
    rkd_instances: Annotated[int, POSITIVE] = 64
    """RKD: most instances of a batch between which relations are measured; memory grows with their cube."""


@dataclass(frozen=True, kw_only=True)
class CWDSettings:
    """Settings of CWD."""

    cwd_weight: Annotated[float, NOT_NEGATIVE] = 5.0
    """CWD: weight (published configuration for RetinaNet's pyramid)."""
    cwd_temperature: Annotated[float, POSITIVE] = 1.0
    """CWD: temperature of the softmax over a channel's cells (same source)."""


@dataclass(frozen=True, kw_only=True)
class PKDSettings:
    """Settings of PKD; a pair holds the value of two-stage detectors, then that of one-stage detectors."""

    pkd_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (6.0, 10.0)
    """PKD: weight (published configurations); two-stage, one-stage."""


@dataclass(frozen=True, kw_only=True)
class FGDSettings:
    """Settings of FGD; a pair holds the value of two-stage detectors, then that of one-stage detectors."""

    fgd_temperature: Annotated[float, POSITIVE] = 0.5
    """FGD: temperature of the attention (published configurations)."""
    fgd_foreground_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (5e-5, 1e-3)
    """FGD: weight of the foreground features (paper's alpha; published code); two-stage, one-stage."""
    fgd_background_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (2.5e-5, 5e-4)
    """FGD: weight of the background features (paper's beta; same source); two-stage, one-stage."""
    fgd_attention_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (5e-5, 1e-3)
    """FGD: weight of the attention (paper's gamma; same source); two-stage, one-stage."""
    fgd_global_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (5e-7, 5e-6)
    """FGD: weight of the global relation (paper's lambda; same source); two-stage, one-stage."""


@dataclass(frozen=True, kw_only=True)
class MGDSettings:
    """Settings of MGD; a pair holds the value of two-stage detectors, then that of one-stage detectors."""

    mgd_weight: Annotated[tuple[float, float], NOT_NEGATIVE] = (5e-7, 2e-5)
    """MGD: weight of the generation (paper's alpha; published configurations); two-stage, one-stage."""
    mgd_masked: Annotated[tuple[float, float], FRACTION] = (0.45, 0.65)
    """MGD: fraction of the student's cells that is masked (paper's lambda; same source); two-stage, one-stage."""


@dataclass(frozen=True, kw_only=True)
class CrossKDSettings:
    """Settings of CrossKD."""

    crosskd_class_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """CrossKD: weight of the crossed class predictions (published configuration)."""
    crosskd_box_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """CrossKD: weight of the crossed boxes (same source)."""


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
