"""torchvision's detectors, built from a specification and opened for distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.detectors.base import StudentPass, plain_targets
    from gkd_fast.detectors.build import DetectorSpec, build_detector, detector_from_weights, specs
    from gkd_fast.detectors.detection import Detection, DetectorAdapter, adapt
    from gkd_fast.detectors.faster_rcnn import FasterRCNNAdapter
    from gkd_fast.detectors.retinanet import RetinaNetAdapter

__all__ = [
    "Detection",
    "DetectorAdapter",
    "DetectorSpec",
    "FasterRCNNAdapter",
    "RetinaNetAdapter",
    "StudentPass",
    "adapt",
    "build_detector",
    "detector_from_weights",
    "plain_targets",
    "specs",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "base": "StudentPass plain_targets",
        "build": "DetectorSpec build_detector detector_from_weights specs",
        "detection": "Detection DetectorAdapter adapt",
        "faster_rcnn": "FasterRCNNAdapter",
        "retinanet": "RetinaNetAdapter",
    },
)
