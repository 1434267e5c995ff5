"""torchvision's RetinaNet with the last steps of detection in the order of other libraries."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.ops import batched_nms, clip_boxes_to_image


class OrderedRetinaNet(RetinaNet):
    """RetinaNet whose boxes are clipped before or after non-maximum suppression, and dropped if they have no area.

    Attributes:
        clip_after_nms: as in detectron2; else before, as in torchvision and mmdet.
        empty_boxes: when boxes without an area are dropped: not at all, before the suppression (mmdet 3.x) or after
            the best were chosen (mmdet 2.x, detectron2).
    """

    clip_after_nms: bool
    empty_boxes: Literal["kept", "before_nms", "after_nms"]

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of each image, best first.

        Args:
            head_outputs: cls_logits and bbox_regression, level by level [N,A_l,...].
            anchors: of each image, level by level [A_l,4].
            image_shapes: heights and widths.
        """
        logits, offsets = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        return [
            self._detected([level[number] for level in logits], [level[number] for level in offsets], own, shape)
            for number, (own, shape) in enumerate(zip(anchors, image_shapes, strict=True))
        ]

    def _detected(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        levels = [self._candidates(*level) for level in zip(logits, offsets, anchors, strict=True)]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        if not self.clip_after_nms:
            boxes = clip_boxes_to_image(boxes, shape)
        if self.empty_boxes == "before_nms":
            boxes, scores, labels = _with_area(boxes, scores, labels)
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        boxes, scores, labels = clip_boxes_to_image(boxes[keep], shape), scores[keep], labels[keep]
        if self.empty_boxes == "after_nms":
            boxes, scores, labels = _with_area(boxes, scores, labels)
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def _candidates(self, logits: Tensor, offsets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes [n,4] of a level with the highest scores above the least, not clipped."""
        scores = logits.sigmoid().flatten()
        above = torch.where(scores > self.score_thresh)[0]
        best, order = scores[above].topk(min(len(above), self.topk_candidates))
        above = above[order]
        anchor, label = above // logits.shape[-1], above % logits.shape[-1]
        return self.box_coder.decode_single(offsets[anchor], anchors[anchor]), best, label


def _with_area(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[keep], scores[keep], labels[keep]
