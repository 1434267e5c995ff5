"""Which ground-truth box every anchor of every image stands for."""

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._anchors import check_anchors
from gkd_fast.ops._checks import check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


@torch.no_grad()
def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    counts: Tensor,
    *,
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool = False,
) -> Tensor:
    """The box of largest IoU with every anchor (Faster R-CNN, section 3.1.2), as torchvision's `Matcher` assigns it.

    No matrix of IoUs is stored. Of equal IoUs the first box counts; an IoU that is no number counts as 0. With
    `allow_low_quality_matches` an anchor is also matched where no other anchor has a larger IoU with some box: then
    with its own best box, which need not be that one. IoUs are rounded as torchvision's `box_iou` rounds them, so that
    ties are the same.

    Args:
        anchors: float32 [A,4], the same for all images, or [N,A,4]; x1 y1 x2 y2.
        boxes: float32 [N,G,4], ground truth, filled up with anything.
        counts: int64 [N], boxes of each image.
        high_threshold: least IoU of a match.
        low_threshold: an anchor of a smaller IoU is background, one in between neither.
        allow_low_quality_matches: see above.

    Returns:
        int64 [N,A], number of the box in its image, -1 for background, -2 for neither. No gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or thresholds out of order.
    """
    check_anchors(anchors, boxes)
    check_tensor("counts", counts, "[N]", torch.int64)
    check_size("counts", "N", counts.shape[0], boxes.shape[0])
    check_same_device(boxes=boxes, anchors=anchors, counts=counts)
    if not low_threshold <= high_threshold:
        raise ValueError(f"low_threshold: expected at most high_threshold = {high_threshold}, got {low_threshold}")
    inputs = anchors, boxes, counts
    if backend_for("match_anchors", boxes.device, ("cpu", "cuda")) == "reference":
        return reference.match_anchors(
            *inputs, high=high_threshold, low=low_threshold, low_quality=allow_low_quality_matches
        )
    return _match(*inputs, high_threshold, low_threshold, allow_low_quality_matches)


def _fake(anchors: Tensor, boxes: Tensor, counts: Tensor, high: float, low: float, low_quality: bool) -> Tensor:
    return counts.new_empty(boxes.shape[0], anchors.shape[-2])


_match = define(
    "match_anchors(Tensor anchors, Tensor boxes, Tensor counts, float high, float low, bool low_quality) -> Tensor",
    _fake,
)
