"""Region proposals and samples of Faster R-CNN for a whole batch, in tensors of fixed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from gkd_fast import ops, parallel
from gkd_fast.detectors.constants import remembered
from gkd_fast.detectors.conventions import SymmetricBoxCoder
from gkd_fast.detectors.truth import PaddedTruth

_BETA = 1 / 9  # of torchvision's smooth L1 losses


@dataclass(frozen=True)
class Samples:
    """Regions that a box head is trained on, S places of each image, positive ones first.

    Attributes:
        boxes: float32 [N,S,4]; any box in places that are not taken.
        matched: int64 [N,S], number of the region's box in its image, -1: background, -2: the place is not taken.
        labels: int64 [N,S], class from 1, 0: background or not taken.
        missing: bool [N,S], places that are not taken.
        positives: most positive places of an image; they are among the first.
    """

    boxes: Tensor
    matched: Tensor
    labels: Tensor
    missing: Tensor
    positives: int


@torch.no_grad()
def propose(
    rpn: RegionProposalNetwork,
    objectness: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Tensor,
    of_level: tuple[int, ...],
    sizes: Tensor,
) -> tuple[Tensor, Tensor]:
    """The best boxes of every image, as torchvision's `filter_proposals` finds them.

    Args:
        rpn: for its limits and thresholds, which differ in training and evaluation.
        objectness, offsets: L maps [N,A_l,H_l,W_l], [N,A_l*4,H_l,W_l].
        anchors: of all levels [A,4].
        of_level: how many each level has.
        sizes: float32 [N,4], width, height, width, height of each image before padding.

    Returns:
        Boxes [N,M,4] by descending score, and bool [N,M], which of these places are not taken.
    """
    scores, codes, places = [], [], []
    for logits, own in zip(objectness, offsets, strict=True):
        rows = logits.permute(0, 2, 3, 1).flatten(1)
        best, place = rows.topk(min(rpn.pre_nms_top_n(), rows.shape[1]), dim=1)
        scores.append(best)
        places.append(place)
        chosen = place[:, :, None].expand(-1, -1, 4)
        codes.append(own.permute(0, 2, 3, 1).reshape(len(own), -1, 4).gather(1, chosen))
    counts, device = tuple(place.shape[1] for place in places), sizes.device
    levels, first = remembered(("levels", counts, of_level, device), lambda: _level_numbers(counts, of_level, device))
    own_anchors = anchors[torch.cat(places, 1) + first]
    boxes = clip(decode(rpn.box_coder, torch.cat(codes, 1).float(), own_anchors), sizes)
    probability = torch.cat(scores, 1).float().sigmoid()
    invalid = (boxes[..., 2:] - boxes[..., :2]).amin(-1) < rpn.min_size
    if rpn.score_thresh > 0:
        invalid = invalid | (probability < rpn.score_thresh)
    groups = levels.expand_as(invalid).masked_fill(invalid, -1)
    kept, _ = ops.batched_nms(boxes, probability, groups, rpn.nms_thresh, most=rpn.post_nms_top_n())
    return boxes.gather(1, kept.clamp(min=0)[:, :, None].expand(-1, -1, 4)), kept < 0


def _level_numbers(counts: Sequence[int], anchors: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """[K] levels of the places taken, and the number of each level's first anchor."""
    levels = torch.cat([torch.full((count,), level, device=device) for level, count in enumerate(counts)])
    starts = [sum(anchors[:level]) for level in range(len(anchors))]
    first = torch.cat([torch.full((count,), start, device=device) for start, count in zip(starts, counts, strict=True)])
    return levels, first


def decode(coder: BoxCoder, codes: Tensor, boxes: Tensor) -> Tensor:
    """Offsets [...,4] on boxes [...,4] to boxes [...,4], in the order of torchvision's operations.

    Args:
        coder: torchvision's, or one that limits how much boxes shrink as well (`SymmetricBoxCoder`).
        codes: float32.
        boxes: anchors or regions, float32.
    """
    x, y, width, height = coder.weights
    sides = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + 0.5 * sides
    moved, scaled = codes[..., :2], codes[..., 2:]
    if (x, y, width, height) != (1.0, 1.0, 1.0, 1.0):
        moved = torch.stack([moved[..., 0] / x, moved[..., 1] / y], -1)
        scaled = torch.stack([scaled[..., 0] / width, scaled[..., 1] / height], -1)
    limit = coder.bbox_xform_clip
    scaled = scaled.clamp(min=-limit if isinstance(coder, SymmetricBoxCoder) else None, max=limit)
    moved, half = moved * sides + centres, 0.5 * (scaled.exp() * sides)
    return torch.cat([moved - half, moved + half], -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [N,...,4] within their images of widths and heights [N,4], each twice."""
    zero = remembered(("zero", sizes.device), lambda: torch.zeros((), device=sizes.device))
    return boxes.clamp(min=zero, max=sizes.view(len(sizes), *(1 for _ in boxes.shape[1:-1]), 4))


def proposal_losses(
    rpn: RegionProposalNetwork,
    objectness: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Tensor,
    truth: PaddedTruth,
) -> dict[str, Tensor]:
    """The losses of the region proposal network; their sums over the processes are those of the global batch.

    Args:
        rpn: for its matcher, sampler and box coder.
        objectness, offsets: L maps [N,A_l,H_l,W_l], [N,A_l*4,H_l,W_l].
        anchors: of all levels [A,4].
        truth: of the N images.
    """
    matched = match(rpn.proposal_matcher, anchors, truth)
    index, drawn = sample(rpn.fg_bg_sampler, matched, truth.seeds[0])
    targets = ops.encode_boxes(anchors, truth.boxes, drawn, weights=rpn.box_coder.weights)
    weight = _reciprocal(index >= 0, len(index))
    shape, device = truth.labels.shape, index.device
    labels = remembered(("labels", *shape, device), lambda: torch.zeros(shape, dtype=torch.int64, device=device))
    return {
        "loss_objectness": ops.sigmoid_focal_loss(objectness, drawn, labels, weight, classes=1, alpha=-1, gamma=0),
        "loss_rpn_box_reg": ops.smooth_l1_loss(offsets, drawn, targets, weight, beta=_BETA),
    }


@torch.no_grad()
def sample_regions(roi_heads: RoIHeads, proposals: Tensor, missing: Tensor, truth: PaddedTruth) -> Samples:
    """The regions that the box head is trained on: proposals and ground truth, as torchvision samples them.

    Args:
        roi_heads: for their matcher and sampler.
        proposals: [N,M,4].
        missing: bool [N,M], places without one.
        truth: of the N images.
    """
    boxes = torch.cat([proposals, truth.boxes], 1)
    matched = match(roi_heads.proposal_matcher, boxes, truth)
    matched = matched.masked_fill(torch.cat([missing, truth.missing], 1), -2)
    sampler = roi_heads.fg_bg_sampler
    index, _ = sample(sampler, matched, truth.seeds[1])
    if boxes.shape[1] == 0:  # neither proposals nor boxes: there is no place to gather from
        boxes, matched = boxes.new_zeros(len(boxes), 1, 4), matched.new_full((len(boxes), 1), -2)
    place, missing = index.clamp(min=0), index < 0
    own = matched.gather(1, place).masked_fill(missing, -2)
    if truth.labels.shape[1]:
        labels = truth.labels.gather(1, own.clamp(min=0)).masked_fill(own < 0, 0)
    else:
        labels = torch.zeros_like(own)
    regions = boxes.gather(1, place[:, :, None].expand(-1, -1, 4))
    return Samples(regions, own, labels, missing, int(sampler.batch_size_per_image * sampler.positive_fraction))


def region_losses(
    roi_heads: RoIHeads, logits: Tensor, offsets: Tensor, samples: Samples, truth: PaddedTruth
) -> dict[str, Tensor]:
    """The losses of the box head; their sums over the processes are those of the global batch.

    Args:
        roi_heads: for their box coder.
        logits: float32 [N*S,K+1].
        offsets: float32 [N*S,4*(K+1)].
        samples: the regions.
        truth: of the N images.
    """
    images, places = samples.labels.shape
    weight = _reciprocal(~samples.missing, images)
    targets = ops.encode_boxes(samples.boxes, truth.boxes, samples.matched, weights=roi_heads.box_coder.weights)
    expected = samples.labels.masked_fill(samples.missing, -100).flatten()
    loss_class = nn.functional.cross_entropy(logits, expected, reduction="sum", ignore_index=-100)
    own = samples.labels.view(-1, 1, 1).expand(-1, -1, 4)
    of_class = offsets.view(len(offsets), -1, 4).gather(1, own).view(images, places * 4, 1, 1)
    loss_box = ops.smooth_l1_loss([of_class], samples.matched, targets, weight, beta=_BETA)
    return {"loss_classifier": loss_class * weight[0], "loss_box_reg": loss_box}


def match(matcher: Matcher, anchors: Tensor, truth: PaddedTruth) -> Tensor:
    """Matches [N,A] as torchvision's `Matcher` assigns them."""
    return ops.match_anchors(
        anchors,
        truth.boxes,
        truth.counts,
        high_threshold=matcher.high_threshold,
        low_threshold=matcher.low_threshold,
        allow_low_quality_matches=matcher.allow_low_quality_matches,
    )


def sample(sampler: BalancedPositiveNegativeSampler, matched: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """As many as torchvision's `BalancedPositiveNegativeSampler` draws, by the images' seeds."""
    return ops.sample_balanced(
        matched, seeds, sampler.batch_size_per_image, positive_fraction=sampler.positive_fraction
    )


def _reciprocal(taken: Tensor, images: int) -> Tensor:
    """[N] 1 / (samples of all processes), from which of the places [N,S] are taken."""
    return parallel.total(taken.sum()).clamp(min=1).reciprocal().expand(images)
