"""torchvision's detectors for one image of one size, with outputs of one size: no shape depends on the data.

What torchvision drops (empty boxes, low scores, what non-maximum suppression discards) keeps its place here with a
score of zero, so that the network can be traced. A box of score zero suppresses no better one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, nms, roi_align

from gkd_fast.ops.multiscale_roi_align import infer_stride
from gkd_fast.ops.reference.multiscale_roi_align import assign_level

_LEAST_SIDE = 1e-2  # pixels; torchvision's RoI heads drop detections with a shorter side


class FixedSizeDetector(nn.Module):
    """A detector as a function of a float image [3,H,W] in 0..1, already resized.

    It returns boxes [D,4] x1 y1 x2 y2 in pixels, scores [D] and labels int64 [D] (from 1), best first, D the most
    detections of the model; all is zero in places without a detection.

    Args:
        model: in evaluation mode; its weights are shared.
        size: (H, W).
    """

    def __init__(self, model: FasterRCNN | RetinaNet, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        multiple = self.model.transform.size_divisible
        height, width = (math.ceil(side / multiple) * multiple for side in self.size)
        padding = (0, width - self.size[1], 0, height - self.size[0])
        images = ImageList(F.pad(self.model.transform.normalize(image), padding)[None], [self.size])
        features = self.model.backbone(images.tensors)
        find = _two_stage if isinstance(self.model, FasterRCNN) else _one_stage
        return find(self.model, images, features)


def _two_stage(model: FasterRCNN, images: ImageList, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    (size,) = images.image_sizes
    heads = model.roi_heads
    proposals, valid = _proposals(model, images, list(features.values()))
    pooled = _pooled(heads.box_roi_pool, features, proposals, size)
    logits, offsets = heads.box_predictor(heads.box_head(pooled))
    boxes = clip_boxes_to_image(heads.box_coder.decode(offsets, [proposals]), size)[:, 1:]
    scores = logits.softmax(-1)[:, 1:]
    labels = torch.arange(1, logits.shape[-1], device=logits.device).expand_as(scores)
    keep = valid[:, None] & (scores > heads.score_thresh) & _extends(boxes, _LEAST_SIDE)
    flat = boxes.reshape(-1, 4), (scores * keep).reshape(-1), labels.reshape(-1)
    return _suppressed(*flat, heads.nms_thresh, heads.detections_per_img)


def _pooled(pool: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """RoIAlign of boxes [P,4] on every level, of which each keeps its own: [P,C,R,R].

    To sort the boxes by level would be less work, and give shapes that depend on the data.
    """
    maps = [features[name] for name in pool.featmap_names]
    strides = [infer_stride(level, [size]) for level in maps]
    own, _ = assign_level(boxes, strides, pool.canonical_scale, pool.canonical_level)
    result = boxes.new_zeros(())
    for number, (level, stride) in enumerate(zip(maps, strides, strict=True)):
        pooled = roi_align(
            level, [boxes], pool.output_size, 1 / stride, pool.sampling_ratio, getattr(pool, "aligned", False)
        )
        result = torch.where((own == number)[:, None, None, None], pooled, result)
    return result


def _proposals(model: FasterRCNN, images: ImageList, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The region proposals [P,4], and which of the places are taken."""
    rpn, (size,) = model.rpn, images.image_sizes
    objectness, deltas = rpn.head(features)
    anchors = rpn.anchor_generator(images, features)
    counts = [level[0].numel() for level in objectness]
    logits, deltas = concat_box_prediction_layers(objectness, deltas)
    boxes = clip_boxes_to_image(rpn.box_coder.decode(deltas, anchors)[:, 0], size)
    found = []
    for level_boxes, level_logits in zip(boxes.split(counts), logits[:, 0].split(counts), strict=True):
        best, index = level_logits.topk(min(rpn.pre_nms_top_n(), len(level_logits)))
        chosen, scores = level_boxes[index], best.sigmoid()
        scores = scores * (_extends(chosen, rpn.min_size) & (scores >= rpn.score_thresh))
        found.append((chosen, scores * _survivors(chosen, scores, rpn.nms_thresh)))
    boxes, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    scores, index = scores.topk(min(rpn.post_nms_top_n(), len(scores)))
    return boxes[index], scores > 0


def _one_stage(model: RetinaNet, images: ImageList, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    (size,) = images.image_sizes
    levels = list(features.values())
    outputs = model.head(levels)
    logits, offsets = outputs["cls_logits"][0], outputs["bbox_regression"][0]
    (anchors,) = model.anchor_generator(images, levels)
    per_cell = model.anchor_generator.num_anchors_per_location()
    counts = [level.shape[-2] * level.shape[-1] * n for level, n in zip(levels, per_cell, strict=True)]
    found = []
    for level_logits, level_offsets, level_anchors in zip(
        logits.split(counts), offsets.split(counts), anchors.split(counts), strict=True
    ):
        all_scores = level_logits.sigmoid().reshape(-1)
        scores, index = all_scores.topk(min(model.topk_candidates, len(all_scores)))
        anchor, label = index // logits.shape[-1], index % logits.shape[-1]
        boxes = model.box_coder.decode_single(level_offsets[anchor], level_anchors[anchor])
        found.append((boxes, scores * (scores > model.score_thresh), label))
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not getattr(model, "clip_after_nms", False):
        boxes = clip_boxes_to_image(boxes, size)
    empty = getattr(model, "empty_boxes", "kept")
    if empty == "before_nms":
        scores = scores * _has_area(boxes)
    boxes, scores, labels = _suppressed(boxes, scores, labels, model.nms_thresh, model.detections_per_img)
    boxes = clip_boxes_to_image(boxes, size)
    if empty != "after_nms":
        return boxes, scores, labels
    area = _has_area(boxes)
    scores, order = (scores * area).sort(descending=True, stable=True)
    taken = area[order]
    return boxes[order] * taken[:, None], scores, labels[order] * taken


def _suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best `most` detections after non-maximum suppression within each class."""
    # Boxes of different classes are moved apart, so that they do not overlap, and none to the left or above of zero.
    least = boxes.amin()
    apart = boxes - least + labels[:, None].to(boxes) * (boxes.amax() - least + 1)
    scores, index = (scores * _survivors(apart, scores, threshold)).topk(min(most, len(scores)))
    taken = scores > 0
    return boxes[index] * taken[:, None], scores, labels[index] * taken


def _survivors(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """[n] 1 for a box that no better one suppresses, else 0; all boxes lie at coordinates of at least 0."""
    # Two boxes apart from all others, since traced programs assert that nms keeps two or more: torchvision's
    # description of it has torch's lower limit for sizes that are not known beforehand.
    apart = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    kept = nms(torch.cat([boxes, apart]), F.pad(scores, (0, 2)), threshold)
    return F.pad(torch.zeros_like(scores), (0, 2)).scatter(0, kept, 1.0)[:-2]


def _has_area(boxes: Tensor) -> Tensor:
    """Whether boxes [...,4] have an area."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def _extends(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of the boxes [...,4] reach a length in pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)
