"""torchvision's Faster R-CNN, opened for distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from gkd_fast import ops, parallel
from gkd_fast.detectors.base import (
    StudentPass,
    level_anchors,
    normalised_batch,
)
from gkd_fast.detectors.opened import Float32, with_parts
from gkd_fast.detectors.sampling import ImageSampler
from gkd_fast.instances import Instances, SoftPairs, image_numbers
from gkd_fast.ops.multiscale_roi_align import infer_stride
from gkd_fast.ops.reference.multiscale_roi_align import assign_level


def _has_roi_align(device: torch.device) -> bool:
    """Whether our RoIAlign has a kernel there; its reference is slower than torchvision's kernel."""
    return device.type == "cpu" or (device.type == "cuda" and ops.backends()["cuda"] == "available")


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
        """The detector with our RoIAlign, samplers of one image each and float32 heads; it shares the model's weights.

        It is in the mode that the model is in, and meant for one use: ``adapter.opened()(images)``.
        """
        rpn, heads = self.model.rpn, self.model.roi_heads
        return with_parts(
            self.model,
            rpn=with_parts(rpn, head=self.proposal_head, fg_bg_sampler=ImageSampler(rpn.fg_bg_sampler, 0)),
            roi_heads=with_parts(
                heads,
                box_roi_pool=self._roi_align(),
                box_predictor=self.box_predictor,
                fg_bg_sampler=ImageSampler(heads.fg_bg_sampler, 1),
            ),
        )

    def _roi_align(self) -> nn.Module:
        own = _has_roi_align(next(self.model.parameters()).device)
        return self.roi_align if own else self.model.roi_heads.box_roi_pool

    def batch(self, images: list[Tensor], size: tuple[int, int] | None = None) -> ImageList:
        """Normalise uint8 images [3,H,W] and pad them, to (height, width) where a size is given."""
        return normalised_batch(self.model, images, size)

    def dense_parts(self, *, teacher: bool = False) -> dict[str, tuple[nn.Module, bool]]:
        """The parts of fixed structure that a training step runs, and whether their rows are boxes, any number."""
        parts = {
            "backbone": (self.model.backbone, False),
            "box head": (self.model.roi_heads.box_head, True),
            "box predictor": (self.box_predictor, True),
        }
        return parts if teacher else {**parts, "proposal head": (self.proposal_head, False)}

    def pyramid(self, images: ImageList) -> dict[str, Tensor]:
        """The levels of strides 4 to 64, float."""
        return self.model.backbone(images.tensors)

    def anchors(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """Anchors of each level [H_l*W_l*A,4], cell by cell."""
        return level_anchors(self.model.rpn.anchor_generator, images, features)

    @torch.no_grad()
    def classify(
        self, pyramid: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """The box head on given boxes, without gradient.

        Args:
            pyramid: levels [N,C,H_l,W_l].
            boxes: of each image, [B_i,4].
            sizes: heights and widths of the images before padding.

        Returns:
            Class logits [B,K+1], background first, and RoI features [B,C,R,R].
        """
        roi = self._roi_align()(pyramid, boxes, sizes)
        return self.box_predictor(self.model.roi_heads.box_head(roi))[0], roi

    def train_pass(self, images: ImageList, targets: list[dict[str, Tensor]]) -> StudentPass:
        """Losses, features and the sampled positive proposals with their assigned classes."""
        opened = self.opened()
        rpn, roi_heads = opened.rpn, opened.roi_heads
        for sampler in (rpn.fg_bg_sampler, roi_heads.fg_bg_sampler):
            sampler.seed(targets)
        pyramid = self.pyramid(images)
        proposals, losses = rpn(images, pyramid, targets)
        proposals, _, labels, regression_targets = roi_heads.select_training_samples(proposals, targets)
        # The padded size: strides are inferred from it, and padding may be wide.
        sizes = [tuple(images.tensors.shape[-2:])] * len(proposals)
        roi_features = roi_heads.box_roi_pool(pyramid, proposals, sizes)
        logits, box_regression = roi_heads.box_predictor(roi_heads.box_head(roi_features))
        loss_class, loss_box = fastrcnn_loss(logits, box_regression, labels, regression_targets)
        anchors, rois = (parallel.share(n, logits) for n in (rpn.fg_bg_sampler.count, len(logits)))
        losses = {name: anchors * value for name, value in losses.items()}
        losses |= {"loss_classifier": rois * loss_class, "loss_box_reg": rois * loss_box}

        image_index = image_numbers(proposals)
        boxes, classes = torch.cat(proposals), torch.cat(labels)
        positive = torch.where(classes > 0)[0]
        instances = Instances(boxes[positive], image_index[positive], classes[positive] - 1)
        soft = {"logits": logits[positive], "roi": roi_features[positive], "sizes": sizes}
        soft |= {"proposals": proposals, "proposal_logits": logits, "is_object": classes > 0}
        return StudentPass(losses, list(pyramid.values()), instances, targets, soft)

    def soft_pairs(self, own: StudentPass, teacher: FasterRCNNAdapter, teacher_pyramid: dict[str, Tensor]) -> SoftPairs:
        """The teacher's head on the student's positive proposals, beside the student's own logits."""
        instances = own.instances
        per_image = [instances.boxes[instances.image_index == i] for i in range(len(own.soft["sizes"]))]
        logits, roi = teacher.classify(teacher_pyramid, per_image, own.soft["sizes"])
        count = torch.arange(len(instances.labels), device=logits.device)
        return SoftPairs(
            student=own.soft["logits"],
            teacher=logits,
            instance=count,
            level=self._levels(own),
            student_embedding=own.soft["roi"].float().mean((2, 3)),
            teacher_embedding=roi.float().mean((2, 3)),
        )

    def _levels(self, own: StudentPass) -> Tensor:
        """The pyramid level [B] that RoIAlign takes for each instance."""
        pool = self.roi_align
        pooled = own.features[: len(pool.featmap_names)]
        strides = [infer_stride(feature, own.soft["sizes"]) for feature in pooled]
        return assign_level(own.instances.boxes, strides, pool.canonical_scale, pool.canonical_level)[0]
