"""What methods may ask a user's networks for, beside maps and boxes: logits, anchors, and all that detectors show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gkd_fast.instances import SoftPairs
from gkd_fast.methods import Step
from gkd_fast.ops.reference.masked_imitation import imitation_level
from gkd_fast.pyramids import BASE_SIZE

Logits = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""boxes [B,4], image_index [B], labels [B] -> class logits [B,K] of the student and of the teacher."""
Anchors = Callable[[Tensor, list[Tensor]], list[Tensor]]
"""images [N,3,H,W] and the student's L maps -> its anchors of each level [H_l*W_l*A,4], cell by cell."""


@dataclass(frozen=True)
class Sources:
    """Where the answers come from.

    Attributes:
        stage: ``two_stage`` (classes exclude each other) or ``one_stage``.
        logits, anchors: callbacks, or None.
        detectors: student and teacher of `gkd_fast.detectors`, or None.
    """

    stage: str
    logits: Logits | None = None
    anchors: Anchors | None = None
    detectors: tuple[Any, Any] | None = None

    @property
    def offered(self) -> frozenset[str]:
        """What there is, as `gkd_fast.methods.Setup` names it."""
        if self.detectors is not None:
            from gkd_fast.detectors.settings import OFFERED

            return OFFERED[self.detectors[0].stage]
        return frozenset(name for name in ("logits", "anchors") if getattr(self, name) is not None)

    def answers(self, step: Step, own: Any) -> dict[str, Any]:
        """Fields of the step.

        Args:
            step: with maps and boxes.
            own: the student's pass, where there are detectors.
        """
        if own is None:
            anchors, logits = self.anchors, self.logits
            return {
                "anchors": anchors and partial(anchors, step.images, step.student),
                "soft": logits and partial(self._soft_pairs, logits, step),
            }
        from gkd_fast.detectors.detection import Detection

        assert self.detectors is not None
        detection = Detection(own, *self.detectors)
        return {
            "detection": detection,
            "anchors": lambda: detection.anchors(step.images, step.student),
            "soft": lambda: detection.soft_pairs(step.teacher_own),
        }

    def _soft_pairs(self, logits: Logits, step: Step) -> SoftPairs:
        truth = step.truth
        student, teacher = logits(truth.boxes, truth.image_index, truth.labels)
        if student.shape != teacher.shape or len(student) != len(truth.boxes):
            raise ValueError(
                f"logits: expected [{len(truth.boxes)},K] of both networks, got {list(student.shape)} and "
                f"{list(teacher.shape)}"
            )
        return SoftPairs(
            student=student,
            teacher=teacher.detach(),
            instance=torch.arange(len(student), device=student.device),
            level=imitation_level(truth.boxes, len(step.student), BASE_SIZE),
            exclusive=self.stage == "two_stage",
        )
