"""torchvision's detectors, built from a specification and opened for distillation."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN, RetinaNet

from gkd_fast.detectors.base import StudentPass, plain_targets
from gkd_fast.detectors.build import DetectorSpec, build_detector, detector_from_weights, specs
from gkd_fast.detectors.detection import Detection, DetectorAdapter
from gkd_fast.detectors.faster_rcnn import FasterRCNNAdapter
from gkd_fast.detectors.retinanet import RetinaNetAdapter


def adapt(model: FasterRCNN | RetinaNet) -> DetectorAdapter:
    """The adapter that fits a torchvision detector.

    Raises:
        TypeError: for any other model.
    """
    if isinstance(model, FasterRCNN):
        return FasterRCNNAdapter(model)
    if isinstance(model, RetinaNet):
        return RetinaNetAdapter(model)
    raise TypeError(f"detector: expected torchvision's FasterRCNN or RetinaNet, got {type(model).__name__}")


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
