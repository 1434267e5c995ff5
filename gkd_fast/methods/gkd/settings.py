"""Settings of global knowledge: prototype generation (PGM) and robust distilling (RDM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from gkd_fast.options import MAIN
from gkd_fast.ranges import FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True, kw_only=True)
class GKDSettings:
    """Settings of global knowledge."""

    prototypes: Annotated[int, POSITIVE] = 10
    """Prototypes of every class and level."""
    prototype_selection: Literal["pursuit", "kmeans", "random"] = "pursuit"
    """Which of the candidates become prototypes: those of the joint matching pursuit, those nearest to the centres of
    k-means in both spaces together, or any; all among the candidates that are dense."""
    alpha: Annotated[float, NOT_NEGATIVE] = 10.0
    """Weight of the agreement between both spaces in the joint matching pursuit."""
    bandwidth: Annotated[float, POSITIVE] = 0.1
    """Bandwidth of the candidates' density, in units of cosine distance."""
    density_quantile: Annotated[float, FRACTION] = 0.4
    """Fraction of the candidates of least density that are dropped, in each space."""
    min_box: Annotated[float, NOT_NEGATIVE, MAIN] = 30.0
    """Candidates are wider and higher than this, in pixels of the resized image."""
    candidate_images: Annotated[int, POSITIVE] = 800
    """Most images from which the candidates of one class are taken in a pass."""
    refresh_epochs: Annotated[int, POSITIVE] = 1
    """Epochs between two generations of the prototypes."""
    prototypes_from: Literal["pass", "harvest"] = "harvest"
    """Where the candidates are embedded: in the training steps (features as they were then; the first generation of a
    run is by a pass), or in a pass of their own over the candidate images each time (published code)."""
    capacity: Annotated[int, POSITIVE] = 400
    """Candidates of each class that are remembered from the training steps, in each process."""
    relax_filters: bool = True
    """Where min_box and density leave a class fewer candidates than prototypes, take the best of the rest
    (off: the published code, which fails there)."""
    repeat_picks: bool = False
    """Let the matching pursuit pick an instance twice (on: the published code)."""
    student_statistics: Literal["batch", "running"] = "batch"
    """Batch normalisation of the student while prototypes are generated: by the batch, as in its training steps,
    or by the running statistics, as in the published code, which starts from a finished student."""
    robust_weights: bool = True
    """Weigh every instance in feature losses, soft labels and masks by how far both spaces agree in it (off: all alike,
    which shows what the weights bring)."""
    positive_weights: bool = True
    """Count negative robust weights as 0 (off: the published code, where they drive the student from the teacher)."""
    negative: Literal["clamp", "mirror"] = "clamp"
    """Coordinates below zero: clamped, or mirrored as in the published code."""
    overlap: Literal["max", "last"] = "max"
    """Overlapping boxes in the weight map: the largest weight wins, or the last box (published code)."""
    box_levels: Literal["every", "own"] = "every"
    """Levels on which a box is foreground, each with the robust weight that the instance has there: all, or the one of
    its size (published code). Region proposals look for an object on other levels than its RoI features come from."""
    background_trust: Literal["prototypes", "none"] = "prototypes"
    """What cells outside of boxes count: as much as they resemble a prototype and both feature spaces agree in it, or
    all the same (published code)."""
    one_stage_soft: Literal["matched", "published"] = "matched"
    """One-stage soft labels: every anchor with its own weight and a sigmoid KL, or as published
    (image-major weights beside level-major logits, softmax KL)."""
    global_weight: Annotated[float, NOT_NEGATIVE, MAIN] = 5.0
    """Weight of the global loss (prototype discrepancy); 0 turns it off."""
    foreground_weight: Annotated[float, NOT_NEGATIVE, MAIN] = 16.0
    """Weight of the foreground feature imitation, in units of the teacher (--feature-units)."""
    background_weight: Annotated[float, NOT_NEGATIVE, MAIN] = 16.0
    """Weight of the background feature imitation, in the same units."""
    soft_weight: Annotated[float, NOT_NEGATIVE, MAIN] = 1.0
    """Weight of the soft-label loss."""
    temperature: Annotated[float, POSITIVE] = 2.0
    """Temperature of the soft labels."""
    attenuation: bool = True
    """Multiply the global and the feature losses by 1 - epoch / epochs."""
    adapter: Literal["3x3", "1x1"] = "3x3"
    """Convolution of every level that adapts the student's features: 3x3, or 1x1 (published code)."""
    adapter_relu: bool = False
    """ReLU behind that convolution."""


PUBLISHED: dict[str, Any] = {
    "prototypes_from": "pass",
    "relax_filters": False,
    "repeat_picks": True,
    "student_statistics": "running",
    "positive_weights": False,
    "negative": "mirror",
    "overlap": "last",
    "box_levels": "own",
    "background_trust": "none",
    "foreground_weight": 1.0,
    "background_weight": 4.0,
    "adapter": "1x1",
    "one_stage_soft": "published",
    "feature_units": "published",
}
"""What makes the method the published code, to float32 rounding."""
