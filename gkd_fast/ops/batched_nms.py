"""Non-maximum suppression of a whole batch, with results of a fixed size."""

import struct

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._checks import check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, constant
from gkd_fast.ops._library import define


@torch.no_grad()
def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, *, most: int
) -> tuple[Tensor, Tensor]:
    """The best boxes of each image, without those that a better box of their group overlaps.

    Images and groups (pyramid levels, classes) do not see each other. The result is that of torchvision's `nms` on the
    CPU for every image and group: of equal scores the first counts, IoUs are rounded as there, and a box whose IoU
    with a kept one is above the threshold is left out. (torchvision's own `batched_nms` moves small problems' groups
    apart instead, which rounds coordinates.)

    Args:
        boxes: float32 [N,K,4], x1 y1 x2 y2.
        scores: float32 [N,K].
        groups: int64 [N,K]; a negative one marks padding, which may hold anything.
        iou_threshold: see above.
        most: boxes M of an image that are kept at most.

    Returns:
        kept: int64 [N,M], their places by descending score, then -1.
        counts: int64 [N], how many they are. No gradients.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_tensor("boxes", boxes, "[N,K,4]", torch.float32)
    check_size("boxes", "last dimension", boxes.shape[2], 4)
    check_tensor("scores", scores, "[N,K]", torch.float32)
    check_tensor("groups", groups, "[N,K]", torch.int64)
    for name, value in (("scores", scores), ("groups", groups)):
        check_size(name, "N", value.shape[0], boxes.shape[0])
        check_size(name, "K", value.shape[1], boxes.shape[1])
    check_same_device(boxes=boxes, scores=scores, groups=groups)
    if most < 0:
        raise ValueError(f"most: expected 0 or more, got {most}")
    order = scores.sort(dim=1, descending=True, stable=True).indices
    inputs = boxes, groups, order, least_above(iou_threshold), most
    if backend_for("batched_nms", boxes.device, ("cpu", "cuda")) == "reference":
        return reference.batched_nms(*inputs)
    return _suppress(*inputs)


def _fake(boxes: Tensor, groups: Tensor, order: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    return order.new_empty(boxes.shape[0], most), order.new_empty(boxes.shape[0])


_suppress = define(
    "batched_nms(Tensor boxes, Tensor groups, Tensor order, float threshold, int most) -> (Tensor, Tensor)", _fake
)


@constant
def least_above(threshold: float) -> float:
    """The least float32 above a number, which torchvision compares with in double precision."""
    (rounded,) = struct.unpack("f", struct.pack("f", threshold))
    if rounded > threshold:
        return rounded
    (bits,) = struct.unpack("i", struct.pack("f", rounded))
    # Of negative numbers, whose order is that of their bits reversed, 0 comes next to the smallest.
    following = bits + 1 if bits >= 0 else bits - 1 if rounded < 0 else 1
    return struct.unpack("f", struct.pack("i", following))[0]
