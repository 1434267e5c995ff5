"""What a detector has to predict for its anchors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._anchors import check_anchors, check_matched
from gkd_fast.ops._checks import check_same_device, check_size
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


@torch.no_grad()
def encode_boxes(
    anchors: Tensor, boxes: Tensor, matched: Tensor, *, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Offsets of each anchor's box from the anchor (R-CNN, appendix C), as torchvision's `BoxCoder` encodes them.

    (w_x (x - x_a) / W_a, w_y (y - y_a) / H_a, w_w log(W / W_a), w_h log(H / H_a)), x and y being centres.

    Args:
        anchors: float32 [A,4], the same for all images, or [N,A,4]; x1 y1 x2 y2.
        boxes: float32 [N,G,4], ground truth.
        matched: int64 [N,A], number of each anchor's box in its image, in [0,G), or negative.
        weights: w_x, w_y, w_w, w_h.

    Returns:
        float32 [N,A,4], 0 for an anchor without a box. No gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_anchors(anchors, boxes)
    check_matched(matched, boxes.shape[0])
    check_size("matched", "A", matched.shape[1], anchors.shape[-2])
    check_same_device(boxes=boxes, anchors=anchors, matched=matched)
    if len(weights) != 4:
        raise ValueError(f"weights: expected 4 numbers, got {tuple(weights)}")
    if backend_for("encode_boxes", boxes.device, ("cpu", "cuda")) == "reference":
        return reference.encode_boxes(anchors, boxes, matched, weights)
    return _encode(anchors, boxes, matched, [float(w) for w in weights])


def _fake(anchors: Tensor, boxes: Tensor, matched: Tensor, weights: list[float]) -> Tensor:
    return boxes.new_empty((*matched.shape, 4))


_encode = define("encode_boxes(Tensor anchors, Tensor boxes, Tensor matched, float[] weights) -> Tensor", _fake)
