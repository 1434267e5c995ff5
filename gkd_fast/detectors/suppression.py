"""The last steps of detection for a whole batch: what torchvision's detectors do image by image.

Each function takes what torchvision's method of its name takes, and stands in for it in an opened detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from gkd_fast import ops
from gkd_fast.detectors.proposals import clip, decode

Shapes = Sequence[tuple[int, int]]
_LEAST_SIDE = 1e-2  # pixels; torchvision's RoI heads drop detections with a shorter side


def filter_proposals(
    rpn: RegionProposalNetwork,
    proposals: Tensor,
    objectness: Tensor,
    image_shapes: Shapes,
    num_anchors_per_level: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """The best proposals of each image, and their probabilities.

    Args:
        rpn: for its limits and thresholds.
        proposals: [N,A,4].
        objectness: logits of all images, [N*A,1].
        image_shapes: heights and widths before padding.
        num_anchors_per_level: which add up to A.
    """
    images = len(proposals)
    logits = objectness.detach().reshape(images, -1)
    parts = [
        level.topk(min(rpn.pre_nms_top_n(), level.shape[1]), dim=1) for level in logits.split(num_anchors_per_level, 1)
    ]
    starts = [sum(num_anchors_per_level[:level]) for level in range(len(parts))]
    index = torch.cat([part.indices + start for part, start in zip(parts, starts, strict=True)], 1)
    levels = torch.cat([torch.full_like(part.indices, level) for level, part in enumerate(parts)], 1)
    boxes = clip(_taken(proposals, index), _limits(image_shapes, proposals))
    scores = torch.cat([part.values for part in parts], 1).float().sigmoid()
    valid = ((boxes[..., 2:] - boxes[..., :2]) >= rpn.min_size).all(-1) & (scores >= rpn.score_thresh)
    kept, counts = ops.batched_nms(boxes, scores, levels.where(valid, -1), rpn.nms_thresh, most=rpn.post_nms_top_n())
    boxes_of, scores_of = _of_images(kept, counts, boxes, scores)
    return boxes_of, scores_of


def postprocess_regions(
    roi_heads: RoIHeads,
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: list[Tensor],
    image_shapes: Shapes,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Boxes, scores and labels of each image, best first, from its regions.

    Args:
        roi_heads: for their box coder, limits and thresholds.
        class_logits: [R,K+1], image after image.
        box_regression: [R,4*(K+1)].
        proposals: of each image [R_i,4].
        image_shapes: heights and widths before padding.
    """
    regions, classes = [len(own) for own in proposals], class_logits.shape[-1]
    codes = box_regression.view(-1, classes, 4)
    boxes = decode(roi_heads.box_coder, codes.float(), torch.cat(proposals)[:, None])[:, 1:]
    scores = class_logits.float().softmax(-1)[:, 1:]
    # Regions that fill up an image have scores of 0.
    boxes, scores = (
        pad_sequence(list(rows.split(regions)), batch_first=True).flatten(1, 2) for rows in (boxes, scores)
    )
    boxes = clip(boxes, _limits(image_shapes, boxes))
    labels = torch.arange(1, classes, device=scores.device).repeat(scores.shape[1] // max(classes - 1, 1))
    valid = (scores > roi_heads.score_thresh) & ((boxes[..., 2:] - boxes[..., :2]) >= _LEAST_SIDE).all(-1)
    # As many candidates as the image with most has: of all regions and classes few are left.
    most = int(valid.sum(1).max()) if valid.numel() else 0
    scores, index = scores.masked_fill(~valid, -1).topk(most, dim=1)
    boxes, labels = _taken(boxes, index), labels[index] if most else index
    groups = labels.where(scores > 0, -1)
    kept, counts = ops.batched_nms(boxes, scores, groups, roi_heads.nms_thresh, most=roi_heads.detections_per_img)
    boxes_of, scores_of, labels_of = _of_images(kept, counts, boxes, scores, labels)
    return boxes_of, scores_of, labels_of


def postprocess_anchors(
    model: RetinaNet, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: Shapes
) -> list[dict[str, Tensor]]:
    """Boxes, scores and labels of each image, best first, from its anchors.

    Args:
        model: for its box coder, limits and thresholds, and for the order of steps (`OrderedRetinaNet`).
        head_outputs: cls_logits [N,A_l,K] and bbox_regression [N,A_l,4] of each level.
        anchors: of each image and level [A_l,4]; the same for all images.
        image_shapes: heights and widths before padding.
    """
    found = [_best_of_level(model, *level) for level in zip(*head_outputs.values(), anchors[0], strict=True)]
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    limits = _limits(image_shapes, boxes)
    empty, valid = getattr(model, "empty_boxes", "kept"), scores > model.score_thresh
    if not getattr(model, "clip_after_nms", False):
        boxes = clip(boxes, limits)
    if empty == "before_nms":
        valid = valid & _with_area(boxes)
    groups = labels.where(valid, -1)
    kept, counts = ops.batched_nms(boxes, scores, groups, model.nms_thresh, most=model.detections_per_img)
    results = zip(*_of_images(kept, counts, clip(boxes, limits), scores, labels), strict=True)
    detected = [dict(zip(("boxes", "scores", "labels"), result, strict=True)) for result in results]
    if empty == "after_nms":
        areas = [_with_area(own["boxes"]) for own in detected]
        detected = [{k: v[area] for k, v in own.items()} for own, area in zip(detected, areas, strict=True)]
    return detected


def _best_of_level(model: RetinaNet, logits: Tensor, offsets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N,C,4], scores and labels of the anchors and classes with the highest scores on one level."""
    scores = logits.float().sigmoid().flatten(1)
    best, index = scores.topk(min(model.topk_candidates, scores.shape[1]), dim=1)
    anchor, labels = index // logits.shape[-1], index % logits.shape[-1]
    return decode(model.box_coder, _taken(offsets.float(), anchor), anchors[anchor]), best, labels


def _taken(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [N,C,4] of [N,A,4]."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


def _limits(image_shapes: Shapes, like: Tensor) -> Tensor:
    return torch.tensor([(width, height) * 2 for height, width in image_shapes], dtype=torch.float32).to(like.device)


def _with_area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def _of_images(kept: Tensor, counts: Tensor, *rows: Tensor) -> list[list[Tensor]]:
    """The rows [N,C,...] of the kept places, image by image; waits for the device, once."""
    place = kept.clamp(min=0)
    chosen = [
        own.gather(1, place.view(*place.shape, *(1 for _ in own.shape[2:])).expand(-1, -1, *own.shape[2:]))
        if own.shape[1]
        else own.new_zeros(*place.shape, *own.shape[2:])
        for own in rows
    ]
    numbers: Any = counts.tolist()
    return [[image[:count] for image, count in zip(own, numbers, strict=True)] for own in chosen]
