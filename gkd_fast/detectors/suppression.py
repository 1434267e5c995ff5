"""The steps of detection for a whole batch that torchvision's detectors take image by image.

Each function takes what the method of torchvision takes that it stands in for in an opened detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from gkd_fast import ops
from gkd_fast.detectors.base import level_anchors, sizes_of
from gkd_fast.detectors.proposals import clip, decode, propose

Shapes = Sequence[tuple[int, int]]
_LEAST_SIDE = 1e-2  # pixels; torchvision's RoI heads drop detections with a shorter side


def region_proposals(
    rpn: RegionProposalNetwork, head: nn.Module, images: ImageList, features: dict[str, Tensor], targets: Any = None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The best proposals of each image, and no losses: the forward pass of torchvision's network in detection.

    Args:
        rpn: for its anchors, limits and thresholds.
        head: that takes the place of its own.
        images: the padded batch.
        features: L maps [N,C,H_l,W_l].
        targets: not looked at.
    """
    maps = list(features.values())
    objectness, offsets = head(maps)
    anchors, of_level = level_anchors(rpn.anchor_generator, images.tensors, maps)
    sizes = sizes_of(images.image_sizes, anchors.device)
    boxes, missing = propose(rpn, objectness, offsets, anchors, of_level, sizes)
    numbers: Any = (~missing).sum(1).tolist()
    return [own[:number] for own, number in zip(boxes, numbers, strict=True)], {}


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
    boxes = clip(boxes, sizes_of(image_shapes, boxes.device))
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
    best = [_best_of_level(model, *level) for level in zip(*head_outputs.values(), anchors[0], strict=True)]
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
    limits = sizes_of(image_shapes, boxes.device)
    empty, valid = getattr(model, "empty_boxes", "kept"), scores > model.score_thresh
    if not getattr(model, "clip_after_nms", False):
        boxes = clip(boxes, limits)
    if empty == "before_nms":
        valid = valid & _with_area(boxes)
    groups = labels.where(valid, -1)
    kept, counts = ops.batched_nms(boxes, scores, groups, model.nms_thresh, most=model.detections_per_img)
    boxes = clip(boxes, limits)
    if empty == "after_nms":
        kept, counts = _without_empty(kept, boxes)
    found = zip(*_of_images(kept, counts, boxes, scores, labels), strict=True)
    return [dict(zip(("boxes", "scores", "labels"), own, strict=True)) for own in found]


def _without_empty(kept: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The kept places [N,M] of boxes [N,C,4] with an area, first and in their order, and their numbers [N]."""
    stays = _with_area(_taken(boxes, kept.clamp(min=0))) & (kept >= 0)
    return kept.gather(1, stays.to(torch.uint8).argsort(dim=1, descending=True, stable=True)), stays.sum(1)


def _best_of_level(model: RetinaNet, logits: Tensor, offsets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N,C,4], scores and labels of the anchors and classes with the highest scores on one level."""
    scores = logits.float().sigmoid().flatten(1)
    best, index = scores.topk(min(model.topk_candidates, scores.shape[1]), dim=1)
    anchor, labels = index // logits.shape[-1], index % logits.shape[-1]
    return decode(model.box_coder, _taken(offsets.float(), anchor), anchors[anchor]), best, labels


def _taken(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [N,C,4] of [N,A,4]."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


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
