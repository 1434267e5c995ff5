"""Global knowledge distillation of one student from one frozen teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast.config import DistillConfig
from gkd_fast.detectors import DetectorAdapter, StudentPass
from gkd_fast.distill.bank import PrototypeBank
from gkd_fast.distill.prototypes import Batches, collect_candidates, generate_bank
from gkd_fast.distill.robust import Adapters, robust_distilling


class Distiller:
    """The frozen teacher, the adapters and the prototype bank; gives a training step its distillation terms.

    Args:
        teacher: adapter of the trained teacher; frozen here, in evaluation mode from now on.
        student_channels: channels of the student's pyramid.
        classes: the data's class names.
        config: the method's settings.
        device: of all networks.
    """

    def __init__(
        self,
        teacher: DetectorAdapter,
        student_channels: int,
        classes: tuple[str, ...],
        config: DistillConfig,
        device: torch.device,
    ) -> None:
        teacher.model.to(device).eval().requires_grad_(False)
        levels = len(teacher.model.backbone.fpn.layer_blocks) + (1 if teacher.stage == "two_stage" else 2)
        self.teacher = teacher
        self.adapters = Adapters(
            student_channels, teacher.model.backbone.out_channels, levels, relu=config.adapter_relu
        ).to(device)
        self.classes = classes
        self.config = config
        self.device = device
        self.bank: PrototypeBank | None = None

    def refresh(
        self,
        student: DetectorAdapter,
        batches: Batches,
        progress: Callable[[int], None] = lambda images: None,
    ) -> PrototypeBank:
        """Generate the prototypes anew from one pass over the batches."""
        candidates = collect_candidates(
            student,
            self.teacher,
            batches,
            self.config,
            self.device,
            progress=progress,
        )
        bank = generate_bank(candidates, self.classes, self.config)
        self.bank = bank.to(self.device)
        return bank

    def terms(
        self, student: DetectorAdapter, own: StudentPass, images: ImageList, *, kappa: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The distillation terms of a step, named ``gkd_*``, and the robust weights [L,B].

        Raises:
            RuntimeError: before the first `refresh`.
        """
        if self.bank is None:
            raise RuntimeError("distiller: expected prototypes, call refresh first")
        with torch.no_grad():
            pyramid = self.teacher.pyramid(images)
        adapted = self.adapters(own.features)
        soft = student.soft_pairs(own, self.teacher, pyramid) if self.config.soft_weight else None
        with torch.autocast(self.device.type, enabled=False):
            terms, omega = robust_distilling(
                own.features,
                adapted,
                list(pyramid.values()),
                own.instances,
                soft,
                self.bank,
                self.config,
                stage=student.stage,
                kappa=kappa,
            )
        return {f"gkd_{name}": value for name, value in terms.items()}, omega

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the student."""
        return list(self.adapters.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Adapters and bank."""
        bank = None if self.bank is None else vars(self.bank.to(torch.device("cpu")))
        return {"adapters": self.adapters.state_dict(), "bank": bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore adapters and bank."""
        self.adapters.load_state_dict(state["adapters"])
        self.bank = None if state["bank"] is None else PrototypeBank(**state["bank"]).to(self.device)
