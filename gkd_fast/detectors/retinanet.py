"""torchvision's RetinaNet, opened for distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead, RetinaNetRegressionHead

from gkd_fast import ops, parallel
from gkd_fast.detectors.base import StudentPass, level_anchors, normalised_batch, plain_targets, sizes_of
from gkd_fast.detectors.constants import remembered
from gkd_fast.detectors.opened import Float32, with_parts
from gkd_fast.detectors.proposals import decode, match
from gkd_fast.detectors.suppression import postprocess_anchors
from gkd_fast.detectors.truth import PaddedTruth, Target, first_instances
from gkd_fast.instances import SoftPairs
from gkd_fast.ops.reference.anchor_losses import anchor_rows
from gkd_fast.overlap import ciou_loss, diou_loss, giou_loss

# The kinds of torchvision's RetinaNetRegressionHead.
_BETAS = {"l1": 0.0, "smooth_l1": 1.0}
_OVERLAP_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


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
        """The detector with a float32 head and our suppression, for detection; it shares the model's weights.

        It is in the mode that the model is in, and meant for one use: ``adapter.opened()(images)``.
        """
        own = partial(postprocess_anchors, self.model)
        return with_parts(self.model, head=self.head, postprocess_detections=own)

    def batch(self, images: list[Tensor], size: tuple[int, int] | None = None) -> ImageList:
        """Normalise uint8 images [3,H,W] and pad them, to (height, width) where a size is given."""
        return normalised_batch(self.model.transform, images, size)

    def pyramid(self, images: ImageList) -> dict[str, Tensor]:
        """The levels of strides 8 to 128, float."""
        return self.model.backbone(images.tensors)

    def anchors(self, images: Tensor, features: list[Tensor]) -> list[Tensor]:
        """float32 anchors of each level [H_l*W_l*A,4], cell by cell, on a batch [N,3,H,W]."""
        anchors, counts = level_anchors(self.model.anchor_generator, images, features)
        return list(anchors.split(counts))

    def train_pass(self, images: ImageList, targets: Sequence[Target]) -> StudentPass:
        """Losses, features and the ground truth as instances."""
        plain = plain_targets(targets, images.tensors.device)
        own = self.tensor_pass(images.tensors, sizes_of(images.image_sizes, images.tensors.device), plain.padded)
        return dataclasses.replace(own, targets=plain)

    def tensor_pass(self, images: Tensor, sizes: Tensor, truth: PaddedTruth) -> StudentPass:
        """The same as a function of tensors whose sizes do not depend on data; see `FasterRCNNAdapter.tensor_pass`."""
        head = self.model.head
        features = list(self.pyramid(ImageList(images, [])).values())
        logits, offsets = predictions(head, features)
        anchors, _ = level_anchors(self.model.anchor_generator, images, features)
        matched = match(self.model.proposal_matcher, anchors, truth)
        weight = _per_object(matched)
        losses = {
            "loss_classification": ops.sigmoid_focal_loss(
                logits, matched, truth.labels, weight, classes=head.classification_head.num_classes
            ),
            "loss_bbox_regression": box_loss(head.regression_head, offsets, anchors, matched, truth, weight),
        }
        soft = {"logits": logits, "matched": matched, "first": first_instances(truth.labels)}
        return StudentPass(losses, features, truth.instances(), (), soft)

    def soft_pairs(self, own: StudentPass, teacher: RetinaNetAdapter, teacher_pyramid: dict[str, Tensor]) -> SoftPairs:
        """Both networks' logits on all anchors, image by image, with the box that the student's matcher assigned.

        Raises:
            ValueError: if the two have other anchors or classes.
        """
        _check_anchors(self.model.anchor_generator, teacher.model.anchor_generator)
        features, matched = list(teacher_pyramid.values()), own.soft["matched"]
        classes = self.model.head.classification_head.num_classes
        with torch.no_grad():
            teacher_logits = teacher.model.head.classification_head(features).float()
        expected = [*matched.shape, classes]
        if list(teacher_logits.shape) != expected:
            raise ValueError(
                f"teacher's anchors and classes: expected logits {expected}, got {list(teacher_logits.shape)}"
            )
        logits = torch.cat(anchor_rows(own.soft["logits"], classes), 1).float()
        return SoftPairs(
            student=logits[..., 1:].flatten(0, 1),
            teacher=teacher_logits[..., 1:].flatten(0, 1),
            instance=(matched + own.soft["first"][:, None]).where(matched >= 0, -1).flatten(),
            level=self._anchor_levels(features).repeat(len(matched)),
        )

    def _anchor_levels(self, features: list[Tensor]) -> Tensor:
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        counts = tuple(f.shape[-2] * f.shape[-1] * n for f, n in zip(features, per_cell, strict=True))
        device = features[0].device
        return remembered(
            ("anchor levels", counts, device),
            lambda: torch.cat([torch.full((n,), level, device=device) for level, n in enumerate(counts)]),
        )


def predictions(head: RetinaNetHead, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Class logits [N,A*K,H_l,W_l] and box offsets [N,A*4,H_l,W_l] as the head's last convolutions write them.

    Args:
        head: torchvision's `RetinaNetHead`, which would join them.
        features: L maps.
    """
    classify, regress = head.classification_head, head.regression_head
    logits = [classify.cls_logits(classify.conv(feature)) for feature in features]
    return logits, [regress.bbox_reg(regress.conv(feature)) for feature in features]


def box_loss(
    head: RetinaNetRegressionHead,
    offsets: list[Tensor],
    anchors: Tensor,
    matched: Tensor,
    truth: PaddedTruth,
    weight: Tensor,
) -> Tensor:
    """torchvision's loss of the box offsets of matched anchors, weighted by the images' `weight` [N].

    Args:
        head: torchvision's `RetinaNetRegressionHead`, for the kind of loss.
        offsets: L maps [N,A*4,H_l,W_l].
        anchors: [A,4] of all levels.
        matched: int64 [N,A].
        truth: of the N images.
        weight: float32 [N].
    """
    if head._loss_type in _BETAS:
        targets = ops.encode_boxes(anchors, truth.boxes, matched, weights=head.box_coder.weights)
        return ops.smooth_l1_loss(offsets, matched, targets, weight, beta=_BETAS[head._loss_type])
    # Losses of decoded boxes, for all anchors; those without a box are left out before and after.
    positive = (matched >= 0)[:, :, None]
    codes = torch.cat(anchor_rows(offsets, 4), 1).float().where(positive, 0.0)
    boxes = anchors.expand_as(codes)
    if truth.labels.shape[1]:
        boxes = truth.boxes.gather(1, matched.clamp(min=0)[:, :, None].expand_as(codes)).where(positive, boxes)
    losses = _OVERLAP_LOSSES[head._loss_type](decode(head.box_coder, codes, anchors), boxes)
    return (losses.where(positive[..., 0], 0.0).sum(1) * weight).sum()


def _per_object(matched: Tensor) -> Tensor:
    """[N] 1 / (matched anchors of the image, images of all processes)."""
    images, device = len(matched) * parallel.world_size(), matched.device
    share = remembered(("share", images, device), lambda: torch.full((), 1 / images, device=device))
    return share / (matched >= 0).sum(1).clamp(min=1)


def _check_anchors(own: AnchorGenerator, teacher: AnchorGenerator) -> None:
    """ValueError unless the anchors have the same sizes, up to rounding, and ratios."""
    pairs = zip(_flat(own.sizes), _flat(teacher.sizes), strict=False)
    alike = len(_flat(own.sizes)) == len(_flat(teacher.sizes)) and all(abs(a - b) < 0.05 * b for a, b in pairs)
    ratios = [tuple(generator.aspect_ratios[0]) for generator in (own, teacher)]
    if not alike or ratios[0] != ratios[1]:
        raise ValueError(
            f"teacher's anchors: expected the student's, of sizes {own.sizes[0]} on the first level and ratios "
            f"{ratios[0]}, got {teacher.sizes[0]} and {ratios[1]}"
        )


def _flat(sizes: tuple[tuple[float, ...], ...]) -> list[float]:
    return [size for level in sizes for size in level]
