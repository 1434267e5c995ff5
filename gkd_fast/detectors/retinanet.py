"""torchvision's RetinaNet, opened for distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from gkd_fast.detectors.base import (
    SoftPairs,
    StudentPass,
    float_outputs,
    ground_truth_instances,
    level_anchors,
    normalised_batch,
)


class RetinaNetAdapter:
    """Runs the parts of a `RetinaNet` one by one and keeps what lies between them."""

    stage = "one_stage"

    def __init__(self, model: RetinaNet) -> None:
        self.model = model
        float_outputs(model.head)

    def batch(self, images: list[Tensor], size: tuple[int, int] | None = None) -> ImageList:
        """Normalise uint8 images [3,H,W] and pad them, to (height, width) where a size is given."""
        return normalised_batch(self.model, images, size)

    def dense_parts(self, *, teacher: bool = False) -> dict[str, tuple[nn.Module, bool]]:
        """The parts of fixed structure that a training step runs, and whether their rows are boxes, any number."""
        head = ("classification head", self.model.head.classification_head) if teacher else ("head", self.model.head)
        return {"backbone": (self.model.backbone, False), head[0]: (head[1], False)}

    def pyramid(self, images: ImageList) -> dict[str, Tensor]:
        """The levels of strides 8 to 128, float."""
        return self.model.backbone(images.tensors)

    def anchors(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """Anchors of each level [H_l*W_l*A,4], cell by cell."""
        return level_anchors(self.model.anchor_generator, images, features)

    def train_pass(self, images: ImageList, targets: list[dict[str, Tensor]]) -> StudentPass:
        """Losses, features and the ground truth as instances."""
        pyramid = self.pyramid(images)
        features = list(pyramid.values())
        outputs = self.model.head(features)
        anchors = self.model.anchor_generator(images, features)
        matched = [self._match(boxes, target["boxes"]) for boxes, target in zip(anchors, targets, strict=True)]
        losses = {
            f"loss_{name}": value
            for name, value in self.model.head.compute_loss(targets, outputs, anchors, matched).items()
        }
        soft = {"logits": outputs["cls_logits"], "matched": torch.stack(matched)}
        return StudentPass(losses, features, ground_truth_instances(targets), targets, soft)

    def soft_pairs(self, own: StudentPass, teacher: RetinaNetAdapter, teacher_pyramid: dict[str, Tensor]) -> SoftPairs:
        """Both networks' logits on the anchors that the student's matcher assigned to a box."""
        features = list(teacher_pyramid.values())
        with torch.no_grad():
            teacher_logits = teacher.model.head.classification_head(features).float()
        logits, matched = own.soft["logits"], own.soft["matched"]
        if teacher_logits.shape != logits.shape:
            raise ValueError(
                f"teacher's anchors and classes: expected logits {list(logits.shape)}, got {list(teacher_logits.shape)}"
            )
        image, anchor = torch.where(matched >= 0)
        counts = torch.bincount(own.instances.image_index, minlength=len(matched))
        first = counts.cumsum(0) - counts
        return SoftPairs(
            student=logits[image, anchor, 1:],
            teacher=teacher_logits[image, anchor, 1:],
            instance=first[image] + matched[image, anchor],
            level=self._anchor_levels(features)[anchor],
        )

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        return self.model.proposal_matcher(box_iou(boxes, anchors))

    def _anchor_levels(self, features: list[Tensor]) -> Tensor:
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        counts = [f.shape[-2] * f.shape[-1] * n for f, n in zip(features, per_cell, strict=True)]
        return torch.repeat_interleave(torch.arange(len(features)), torch.tensor(counts)).to(features[0].device)
