"""Reads the golden vectors: inputs and outputs of the published code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import PUBLISHED
from gkd_fast.methods.gkd.bank import PrototypeBank

FOLDER = Path(os.environ.get("GKD_GOLDEN_DIR") or Path(__file__).parent / "golden_vectors")


class Golden:
    """One file of golden vectors, with tensors in the form that the distilling module takes."""

    def __init__(self, path: Path) -> None:
        self.values = np.load(path)
        self.levels = 5
        self.stage = {"TwoStageDetStrategy": "two_stage", "OneStageDetStrategy": "one_stage"}[str(self.values["stage"])]
        self.kappa = 1 - int(self.values["epoch"]) / int(self.values["max_epochs"])
        self.config = Settings(**PUBLISHED, global_weight=5.0 if str(self.values["pair_wise"]) == "use_r2i" else 0.0)

    def tensor(self, name: str, *, grad: bool = False) -> Tensor:
        return torch.from_numpy(self.values[name].copy()).requires_grad_(grad)

    def maps(self, name: str, *, grad: bool = False) -> list[Tensor]:
        return [self.tensor(f"{name}_{level}", grad=grad) for level in range(self.levels)]

    def instances(self) -> Instances:
        boxes, labels = self.tensor("boxes"), self.tensor("labels")
        image_index = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])
        return Instances(boxes.flatten(0, 1), image_index, labels.flatten())

    def bank(self) -> PrototypeBank:
        student, teacher = (
            torch.stack(self.maps("prototypes_student")),
            torch.stack(self.maps("prototypes_teacher")),
        )
        levels, count = student.shape[:2]
        return PrototypeBank(
            student=student,
            teacher=teacher,
            class_offsets=self.tensor("class_offsets"),
            most=5,
            image_ids=torch.zeros(levels, count, dtype=torch.int64),
            boxes=torch.zeros(levels, count, 4),
            classes=tuple("abcd"),
            strides=tuple(self.values["strides"].tolist()),
        )

    def soft(self, logits: Tensor) -> SoftPairs:
        count = torch.arange(len(logits))
        if self.stage == "two_stage":
            embeddings = [self.tensor(name).mean((2, 3)) for name in ("roi_student", "roi_teacher")]
            return SoftPairs(logits, self.tensor("logits_teacher"), count, self.tensor("roi_levels"), *embeddings)
        # The rows are already level-major; equal levels keep their order.
        return SoftPairs(logits, self.tensor("logits_teacher"), count, torch.zeros_like(count))
