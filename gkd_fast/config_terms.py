"""Settings of the distillation methods beside global knowledge, with their published weights as defaults.

A pair of numbers holds the value of two-stage detectors, then the one of one-stage detectors. Published weights
belong to pyramids of 256 channels and images of 800 x 1333 pixels; losses that are sums over a map shrink with both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gkd_fast.errors import InputError
from gkd_fast.options import MAIN, Alias

TERMS = ("gkd", "fgfi", "defeat", "fbkd", "rkd", "cwd", "pkd", "fgd", "mgd", "crosskd")
MASKED_TERMS = ("fgfi", "defeat", "fgd")
ONE_STAGE_TERMS = ("crosskd",)


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Which methods distil, and the weights of those that are not global knowledge."""

    terms: Annotated[str, MAIN, Alias("method")] = "gkd"
    """Distillation methods, joined by "+": gkd (global knowledge), fgfi, defeat, fbkd, rkd, cwd, pkd, fgd, mgd,
    crosskd (RetinaNet only)."""
    robust_masks: bool = False
    """Weigh every ground-truth box in the masks of fgfi, defeat and fgd by its robust weight (paper, robust
    distilling); needs prototypes also where gkd is not among the terms. Off: the masks as published."""
    fgfi_weight: float = 0.01
    """FGFI: weight of the imitation (published code)."""
    fgfi_threshold: float = 0.5
    """FGFI: fraction of a box's largest IoU above which an anchor is near it (paper's psi)."""
    defeat_foreground_weight: float = 3.0
    """DeFeat: weight of the features in objects (published configuration for Faster R-CNN on VOC)."""
    defeat_background_weight: float = 12.0
    """DeFeat: weight of the features outside of objects (same source)."""
    defeat_positive_weight: float = 2.0
    """DeFeat: weight of the class logits of positive proposals (same source; two-stage only)."""
    defeat_negative_weight: float = 2.0
    """DeFeat: weight of the class logits of negative proposals (same source; two-stage only)."""
    fbkd_temperature: tuple[float, float] = (0.5, 0.1)
    """FBKD: temperature of the attention masks (published code); two-stage, one-stage."""
    fbkd_masked_weight: tuple[float, float] = (7e-5, 4.2e-4)
    """FBKD: weight of the masked feature imitation (published code); two-stage, one-stage."""
    fbkd_attention_weight: tuple[float, float] = (4e-3, 2.4e-2)
    """FBKD: weight of the attention imitation (same source); two-stage, one-stage."""
    fbkd_relation_weight: tuple[float, float] = (7e-5, 4.2e-4)
    """FBKD: weight of the non-local relation (same source); two-stage, one-stage."""
    rkd_distance_weight: float = 25.0
    """RKD: weight of the distances (RKD-DA, as in OpenMMLab's implementation)."""
    rkd_angle_weight: float = 50.0
    """RKD: weight of the angles (same source)."""
    rkd_instances: int = 64
    """RKD: most instances of a batch between which relations are measured; memory grows with their cube."""
    cwd_weight: float = 5.0
    """CWD: weight (published configuration for RetinaNet's pyramid)."""
    cwd_temperature: float = 1.0
    """CWD: temperature of the softmax over a channel's cells (same source)."""
    pkd_weight: tuple[float, float] = (6.0, 10.0)
    """PKD: weight (published configurations); two-stage, one-stage."""
    fgd_temperature: float = 0.5
    """FGD: temperature of the attention (published configurations)."""
    fgd_foreground_weight: tuple[float, float] = (5e-5, 1e-3)
    """FGD: weight of the foreground features (paper's alpha; published code); two-stage, one-stage."""
    fgd_background_weight: tuple[float, float] = (2.5e-5, 5e-4)
    """FGD: weight of the background features (paper's beta; same source); two-stage, one-stage."""
    fgd_attention_weight: tuple[float, float] = (5e-5, 1e-3)
    """FGD: weight of the attention (paper's gamma; same source); two-stage, one-stage."""
    fgd_global_weight: tuple[float, float] = (5e-7, 5e-6)
    """FGD: weight of the global relation (paper's lambda; same source); two-stage, one-stage."""
    mgd_weight: tuple[float, float] = (5e-7, 2e-5)
    """MGD: weight of the generation (paper's alpha; published configurations); two-stage, one-stage."""
    mgd_masked: tuple[float, float] = (0.45, 0.65)
    """MGD: fraction of the student's cells that is masked (paper's lambda; same source); two-stage, one-stage."""
    crosskd_class_weight: float = 1.0
    """CrossKD: weight of the crossed class predictions (published configuration)."""
    crosskd_box_weight: float = 1.0
    """CrossKD: weight of the crossed boxes (same source)."""

    @property
    def robust_terms(self) -> bool:
        """Whether a term that is not gkd needs robust weights, and with them prototypes."""
        return self.robust_masks and any(name in MASKED_TERMS for name in self.terms.split("+"))


def parse_terms(terms: str, *, one_stage: bool) -> tuple[str, ...]:
    """The names in ``gkd+fgd``, in the order given.

    Args:
        terms: names joined by "+".
        one_stage: whether the detector is a one-stage detector.

    Raises:
        InputError: for a name that is unknown, given twice, or of no use to the detector.
    """
    names = tuple(name.strip() for name in terms.split("+"))
    for name in names:
        if name not in TERMS:
            raise InputError(f"--terms: expected names of {', '.join(TERMS)} joined by '+'; got {name!r}")
        if names.count(name) > 1:
            raise InputError(f"--terms: expected every name once, got {name} {names.count(name)} times")
        if name in ONE_STAGE_TERMS and not one_stage:
            raise InputError(f"--terms: {name} crosses the heads of one-stage detectors; expected --detector retinanet")
    return names


def validate_terms(config: TermConfig, *, one_stage: bool) -> None:
    """Check names and ranges.

    Raises:
        InputError: naming the option, what was expected and what was given.
    """
    parse_terms(config.terms, one_stage=one_stage)
    for name in TermConfig.__dataclass_fields__:
        option, value = f"--{name.replace('_', '-')}", getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if name.endswith("_weight") and min(values) < 0:
            raise InputError(f"{option}: expected zero or a positive number, got {value}")
        if name.endswith(("_temperature", "_instances")) and not min(values) > 0:
            raise InputError(f"{option}: expected a positive number, got {value}")
        if name in ("fgfi_threshold", "mgd_masked") and not all(0 <= item <= 1 for item in values):
            raise InputError(f"{option}: expected a number from 0 to 1, got {value}")
