"""What two torchvision detectors show to the methods that need more than maps and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet

from gkd_fast.detectors.base import StudentPass
from gkd_fast.detectors.faster_rcnn import FasterRCNNAdapter
from gkd_fast.detectors.retinanet import RetinaNetAdapter
from gkd_fast.instances import SoftPairs

DetectorAdapter = FasterRCNNAdapter | RetinaNetAdapter


@dataclass(frozen=True)
class Detection:
    """One training pass of a student beside its teacher.

    Attributes:
        own: the student's pass.
        student, teacher: both detectors.
    """

    own: StudentPass
    student: DetectorAdapter
    teacher: DetectorAdapter

    def anchors(self, images: Tensor, features: list[Tensor]) -> list[Tensor]:
        """The student's anchors of each level [H_l*W_l*A,4] on a batch [N,3,H,W], cell by cell."""
        return self.student.anchors(images, features)

    def teacher_pyramid(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """The teacher's maps by the names that its heads know them by."""
        if isinstance(self.teacher, RetinaNetAdapter):
            return {str(level): feature for level, feature in enumerate(maps)}
        names = self.teacher.model.roi_heads.box_roi_pool.featmap_names
        return dict(zip(names, maps, strict=False))

    def soft_pairs(self, maps: list[Tensor]) -> SoftPairs:
        """Logits of both networks at the student's places; maps: the teacher's."""
        student: Any = self.student  # of the teacher's kind
        pairs: SoftPairs = student.soft_pairs(self.own, self.teacher, self.teacher_pyramid(maps))
        return pairs


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
