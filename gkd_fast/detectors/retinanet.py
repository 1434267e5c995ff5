"""torchvision's RetinaNet, opened for distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, sigmoid_focal_loss

from gkd_fast import parallel
from gkd_fast.detectors.base import (
    StudentPass,
    ground_truth_instances,
    level_anchors,
    normalised_batch,
)
from gkd_fast.detectors.opened import Float32, with_parts
from gkd_fast.instances import SoftPairs


class RetinaNetAdapter:
    """Runs the parts of a `RetinaNet` one by one and keeps what lies between them.

    Args:
        model: stays as it is; its head is that of the adapter from now on, whatever replaces it in the model.
    """

    stage = "one_stage"

    def __init__(self, model: RetinaNet) -> None:
        self.model = model
        self.head = Float32(model.head)

    def opened(self) -> RetinaNet:
        """The detector with a float32 head, for detection; it shares the model's weights.

        It is in the mode that the model is in, and meant for one use: ``adapter.opened()(images)``.
        """
        return with_parts(self.model, head=self.head)

    def batch(self, images: list[Tensor], size: tuple[int, int] | None = None) -> ImageList:
        """Normalise uint8 images [3,H,W] and pad them, to (height, width) where a size is given."""
        return normalised_batch(self.model, images, size)

    def dense_parts(self, *, teacher: bool = False) -> dict[str, tuple[nn.Module, bool]]:
        """The parts of fixed structure that a training step runs, and whether their rows are boxes, any number."""
        head = ("classification head", self.model.head.classification_head) if teacher else ("head", self.head)
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
        outputs = self.head(features)
        anchors = self.model.anchor_generator(images, features)
        matched = [self._match(boxes, target["boxes"]) for boxes, target in zip(anchors, targets, strict=True)]
        part = parallel.share(len(targets), features[0])
        losses = {
            "loss_classification": part * self._classification_loss(outputs["cls_logits"], targets, matched),
            "loss_bbox_regression": part * self._box_loss(outputs, targets, anchors, matched),
        }
        soft = {"logits": outputs["cls_logits"], "matched": torch.stack(matched)}
        return StudentPass(losses, features, ground_truth_instances(targets), targets, soft)

    def soft_pairs(self, own: StudentPass, teacher: RetinaNetAdapter, teacher_pyramid: dict[str, Tensor]) -> SoftPairs:
        """Both networks' logits on all anchors, image by image, with the box that the student's matcher assigned."""
        features = list(teacher_pyramid.values())
        with torch.no_grad():
            teacher_logits = teacher.model.head.classification_head(features).float()
        logits, matched = own.soft["logits"], own.soft["matched"]
        if teacher_logits.shape != logits.shape:
            raise ValueError(
                f"teacher's anchors and classes: expected logits {list(logits.shape)}, got {list(teacher_logits.shape)}"
            )
        counts = [len(target["labels"]) for target in own.targets]
        instance = torch.stack([boxes + sum(counts[:number]) for number, boxes in enumerate(matched)])
        return SoftPairs(
            student=logits[..., 1:].flatten(0, 1),
            teacher=teacher_logits[..., 1:].flatten(0, 1),
            instance=instance.where(matched >= 0, -1).flatten(),
            level=self._anchor_levels(features).repeat(len(matched)),
        )

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        matcher = self.model.proposal_matcher
        iou = box_iou(boxes, anchors)
        best, index = iou.max(0)
        matched = torch.where(best < matcher.high_threshold, matcher.BETWEEN_THRESHOLDS, index)
        matched = torch.where(best < matcher.low_threshold, matcher.BELOW_LOW_THRESHOLD, matched)
        if matcher.allow_low_quality_matches:
            matched = torch.where((iou == iou.amax(1, keepdim=True)).any(0), index, matched)
        return matched

    def _classification_loss(self, logits: Tensor, targets: list[dict[str, Tensor]], matched: list[Tensor]) -> Tensor:
        """Focal loss as torchvision's, with zeros in the place of selected anchors: no size depends on the data.

        Args:
            logits: [N,A,K+1].
            targets: boxes and labels of each image.
            matched: int64 [A] of each image, the anchor's box; -1: background, -2: to be ignored.
        """
        classes = torch.arange(logits.shape[-1], device=logits.device)
        losses = []
        for image_logits, target, boxes in zip(logits, targets, matched, strict=True):
            positive = boxes >= 0
            truth = torch.zeros_like(image_logits)
            if len(target["labels"]):
                labels = target["labels"][boxes.clamp(min=0)]
                truth = ((labels[:, None] == classes) & positive[:, None]).to(truth.dtype)
            loss = sigmoid_focal_loss(image_logits, truth, reduction="none").sum(1)
            ignored = boxes == self.model.proposal_matcher.BETWEEN_THRESHOLDS
            losses.append(loss.masked_fill(ignored, 0).sum() / positive.sum().clamp(min=1))
        return torch.stack(losses).mean()

    def _box_loss(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        anchors: list[Tensor],
        matched: list[Tensor],
    ) -> Tensor:
        """L1 loss of the box offsets as torchvision's, again with zeros; other losses are left to torchvision."""
        head = self.model.head.regression_head
        if head._loss_type != "l1":
            return head.compute_loss(targets, outputs, anchors, matched)
        losses = []
        for offsets, target, image_anchors, boxes in zip(
            outputs["bbox_regression"], targets, anchors, matched, strict=True
        ):
            positive = boxes >= 0
            if len(target["boxes"]) == 0:
                losses.append(offsets.sum() * 0)
                continue
            truth = head.box_coder.encode_single(target["boxes"][boxes.clamp(min=0)], image_anchors)
            difference = (offsets - truth).abs().sum(1).masked_fill(~positive, 0)
            losses.append(difference.sum() / positive.sum().clamp(min=1))
        return torch.stack(losses).mean()

    def _anchor_levels(self, features: list[Tensor]) -> Tensor:
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        counts = [f.shape[-2] * f.shape[-1] * n for f, n in zip(features, per_cell, strict=True)]
        return torch.cat([torch.full((n,), level, device=features[0].device) for level, n in enumerate(counts)])
