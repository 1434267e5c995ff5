"""torchvision's Faster R-CNN, opened for distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from gkd_fast import ops
from gkd_fast.detectors.base import StudentPass, level_anchors, normalised_batch, plain_targets, sizes_of
from gkd_fast.detectors.opened import Float32, with_parts
from gkd_fast.detectors.proposals import Samples, proposal_losses, propose, region_losses, sample_regions
from gkd_fast.detectors.suppression import postprocess_regions, region_proposals
from gkd_fast.detectors.truth import PaddedTruth, Target, row_images, row_numbers
from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.ops._dispatch import constant
from gkd_fast.ops.multiscale_roi_align import infer_stride
from gkd_fast.ops.reference.multiscale_roi_align import assign_level


@constant
def _has_roi_align(device: str) -> bool:
    """Whether our RoIAlign has a kernel there; its reference is slower than torchvision's kernel."""
    return device == "cpu" or (device == "cuda" and ops.backends()["cuda"] == "available")


class FasterRCNNAdapter:
    """Runs the parts of a `FasterRCNN` one by one and keeps what lies between them.

    Args:
        model: stays as it is; its heads are those of the adapter from now on, whatever replaces them in the model.
    """

    stage = "two_stage"

    def __init__(self, model: FasterRCNN) -> None:
        self.model = model
        pool = model.roi_heads.box_roi_pool
        self.roi_align = ops.MultiScaleRoIAlign(
            pool.featmap_names,
            pool.output_size,
            pool.sampling_ratio,
            canonical_scale=pool.canonical_scale,
            canonical_level=pool.canonical_level,
            aligned=getattr(pool, "aligned", False),
        )
        self.proposal_head = Float32(model.rpn.head)
        self.box_predictor = Float32(model.roi_heads.box_predictor)

    def opened(self) -> FasterRCNN:
        """The detector with our RoIAlign and suppression and float32 heads; it shares the model's weights.

        It is in the mode that the model is in, and meant for one use: ``adapter.opened()(images)``.
        """
        rpn, heads = self.model.rpn, self.model.roi_heads
        return with_parts(
            self.model,
            rpn=with_parts(rpn, forward=partial(region_proposals, rpn, self.proposal_head)),
            roi_heads=with_parts(
                heads,
                box_roi_pool=self._roi_align(),
                box_predictor=self.box_predictor,
                postprocess_detections=partial(postprocess_regions, heads),
            ),
        )

    def _roi_align(self) -> nn.Module:
        own = _has_roi_align(next(self.model.parameters()).device.type)
        return self.roi_align if own else self.model.roi_heads.box_roi_pool

    def batch(self, images: list[Tensor], size: tuple[int, int] | None = None) -> ImageList:
        """Normalise uint8 images [3,H,W] and pad them, to (height, width) where a size is given."""
        return normalised_batch(self.model.transform, images, size)

    def pyramid(self, images: ImageList) -> dict[str, Tensor]:
        """The levels of strides 4 to 64, float."""
        return self.model.backbone(images.tensors)

    def anchors(self, images: Tensor, features: list[Tensor]) -> list[Tensor]:
        """float32 anchors of each level [H_l*W_l*A,4], cell by cell, on a batch [N,3,H,W]."""
        anchors, counts = level_anchors(self.model.rpn.anchor_generator, images, features)
        return list(anchors.split(counts))

    @torch.no_grad()
    def classify(self, pyramid: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The box head on given boxes, without gradient.

        Args:
            pyramid: levels [N,C,H_l,W_l].
            boxes: of each image, [N,P,4].
            size: height and width of the padded images.

        Returns:
            Class logits [N*P,K+1], background first, and RoI features [N*P,C,R,R].
        """
        roi = self._pooled(pyramid, boxes, size)
        return self.box_predictor(self.model.roi_heads.box_head(roi))[0], roi

    def train_pass(self, images: ImageList, targets: Sequence[Target]) -> StudentPass:
        """Losses, features and the sampled positive proposals with their assigned classes."""
        plain = plain_targets(targets, images.tensors.device)
        own = self.tensor_pass(images.tensors, sizes_of(images.image_sizes, images.tensors.device), plain.padded)
        return dataclasses.replace(own, targets=plain)

    def tensor_pass(self, images: Tensor, sizes: Tensor, truth: PaddedTruth) -> StudentPass:
        """The same as a function of tensors whose sizes do not depend on data.

        Args:
            images: the padded batch [N,3,H,W].
            sizes: of the images before padding, from `sizes_of`.
            truth: of the N images.
        """
        rpn, heads = self.model.rpn, self.model.roi_heads
        pyramid = self.pyramid(ImageList(images, []))
        features = list(pyramid.values())
        anchors, counts = level_anchors(rpn.anchor_generator, images, features)
        objectness, offsets = rpn.head(features)
        losses = proposal_losses(rpn, objectness, offsets, anchors, truth)
        found, missing = propose(rpn, objectness, offsets, anchors, counts, sizes)
        samples = sample_regions(heads, found, missing, truth)
        # The padded size: strides are inferred from it, and padding may be wide.
        size = images.shape[-2], images.shape[-1]
        pooled = self._pooled(pyramid, samples.boxes, size)
        logits, box_regression = self.box_predictor(heads.box_head(pooled))
        losses |= region_losses(heads, logits, box_regression, samples, truth)
        soft = {"logits": logits, "roi": pooled, "size": size, "samples": samples}
        return StudentPass(losses, features, _positives(samples), (), soft)

    def _pooled(self, pyramid: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """RoI features [N*P,C,R,R] of boxes [N,P,4]."""
        pool = self._roi_align()
        if pool is not self.roi_align and not isinstance(pool, ops.MultiScaleRoIAlign):
            return pool(pyramid, list(boxes.unbind(0)), [size] * len(boxes))
        return pool.pool(pyramid, boxes.flatten(0, 1), row_images(boxes), size)

    def soft_pairs(self, own: StudentPass, teacher: FasterRCNNAdapter, teacher_pyramid: dict[str, Tensor]) -> SoftPairs:
        """The teacher's head on the student's positive proposals, beside the student's own logits."""
        samples, size, instances = own.soft["samples"], own.soft["size"], own.instances
        images, places = samples.labels.shape
        boxes = samples.boxes[:, : samples.positives]
        logits, roi = teacher.classify(teacher_pyramid, boxes, size)
        student, student_roi = (
            own.soft[name].unflatten(0, (images, places))[:, : samples.positives].flatten(0, 1)
            for name in ("logits", "roi")
        )
        number = row_numbers(instances.labels)
        return SoftPairs(
            student=student,
            teacher=logits,
            instance=number.where(instances.labels >= 0, -1),
            level=self._levels(own),
            student_embedding=student_roi.float().mean((2, 3)),
            teacher_embedding=roi.float().mean((2, 3)),
        )

    def _levels(self, own: StudentPass) -> Tensor:
        """The pyramid level [B] that RoIAlign takes for each instance."""
        pool = self.roi_align
        pooled = own.features[: len(pool.featmap_names)]
        strides = [infer_stride(feature, [own.soft["size"]]) for feature in pooled]
        return assign_level(own.instances.boxes, strides, pool.canonical_scale, pool.canonical_level)[0]


def _positives(samples: Samples) -> Instances:
    """The places of positive samples as instances; a place that holds none has a box of no size."""
    boxes, labels = (values[:, : samples.positives] for values in (samples.boxes, samples.labels))
    boxes = boxes.masked_fill((labels <= 0)[:, :, None], 0.0)
    return Instances(boxes.flatten(0, 1), row_images(boxes), (labels - 1).flatten())
