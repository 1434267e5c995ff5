"""Losses of one-stage predictions, read from the maps on which the heads write them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._anchors import check_anchor_maps
from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define
from gkd_fast.ops._pyramid import is_channels_last


def sigmoid_focal_loss(
    logits: Sequence[Tensor],
    matched: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    classes: int,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss of all anchors of all images and levels (RetinaNet, equation 5), as torchvision's.

    sum_n weight_n sum_i alpha_t (1 - p_t)^gamma (-log p_t) over the anchors that are matched or background. The maps
    are neither joined nor reordered, and the forward pass makes their gradient. gamma 0 and alpha -1 give binary cross
    entropy.

    Args:
        logits: L maps [N,A_l*K,H_l,W_l], the classes of an anchor in a row; float32, float64, bfloat16 or float16,
            any memory format.
        matched: int64 [N,A], number of each anchor's box in its image, -1: background, less: left out; level by
            level, cell by cell.
        labels: int64 [N,G], class of each box, in [0,K); of another one the anchors are background.
        weight: float32 [N].
        classes: K.
        alpha: weight of a positive, 1 - alpha that of a negative; -1: both are 1.
        gamma: exponent, 0 or more.

    Returns:
        Scalar, float32 (float64 if the logits are). Differentiable in `logits`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    if classes < 1:
        raise ValueError(f"classes: expected a positive number, got {classes}")
    if not gamma >= 0:
        raise ValueError(f"gamma: expected 0 or more, got {gamma}")
    check_anchor_maps("logits", logits, classes, matched, weight)
    check_tensor("labels", labels, "[N,G]", torch.int64)
    check_size("labels", "N", labels.shape[0], matched.shape[0])
    check_same_device(matched=matched, labels=labels)
    kernels = ("cpu",) if logits[0].dtype == torch.float64 else ("cpu", "cuda")
    if backend_for("sigmoid_focal_loss", matched.device, kernels) == "reference":
        return reference.sigmoid_focal_loss(logits, matched, labels, weight, classes=classes, alpha=alpha, gamma=gamma)
    return _Loss.apply(_focal, (matched, labels, weight, classes, alpha, gamma), torch.is_grad_enabled(), *logits)


def smooth_l1_loss(
    offsets: Sequence[Tensor], matched: Tensor, targets: Tensor, weight: Tensor, *, beta: float = 0.0
) -> Tensor:
    """Smooth L1 loss of the offsets of all matched anchors (Fast R-CNN, equation 3), as torch's.

    sum_n weight_n sum_i h(offset - target), h(d) = d^2 / (2 beta) below beta, else |d| - beta / 2; with beta 0 the
    L1 loss. As for `sigmoid_focal_loss`, the maps are neither joined nor reordered.

    Args:
        offsets: L maps [N,A_l*4,H_l,W_l], the four of an anchor in a row; float32, float64, bfloat16 or float16.
        matched: int64 [N,A], 0 or more for the anchors that count; level by level, cell by cell.
        targets: float32 [N,A,4] from `encode_boxes`.
        weight: float32 [N].
        beta: where the parabola ends.

    Returns:
        Scalar, float32 (float64 if the offsets are). Differentiable in `offsets`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    if not beta >= 0:
        raise ValueError(f"beta: expected 0 or more, got {beta}")
    check_anchor_maps("offsets", offsets, 4, matched, weight)
    check_tensor("targets", targets, "[N,A,4]", torch.float32)
    for dimension, name, expected in ((0, "N", matched.shape[0]), (1, "A", matched.shape[1]), (2, "offsets", 4)):
        check_size("targets", name, targets.shape[dimension], expected)
    check_same_device(matched=matched, targets=targets)
    kernels = ("cpu",) if offsets[0].dtype == torch.float64 else ("cpu", "cuda")
    if backend_for("smooth_l1_loss", matched.device, kernels) == "reference":
        return reference.smooth_l1_loss(offsets, matched, targets, weight, beta=beta)
    return _Loss.apply(_smooth_l1, (matched, targets, weight, beta), torch.is_grad_enabled(), *offsets)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a gradient kept for the backward pass: float16 would lose what is small before losses are scaled."""
    return torch.float32 if dtype == torch.float16 else dtype


def _fake(maps: list[Tensor], *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    channels_last, needed = arguments[-2:]
    loss = maps[0].new_empty((), dtype=accumulation_dtype(maps[0].dtype))
    formats = (torch.channels_last if last else torch.contiguous_format for last in channels_last)
    states = [
        m.new_empty(m.shape, dtype=state_dtype(m.dtype)).contiguous(memory_format=f)
        for m, f in zip(maps, formats, strict=True)
    ]
    return loss, states if needed else []


_focal = define(
    "sigmoid_focal_loss(Tensor[] logits, Tensor matched, Tensor labels, Tensor weight, int classes, float alpha,"
    " float gamma, int[] channels_last, bool needed) -> (Tensor, Tensor[])",
    _fake,
)
_smooth_l1 = define(
    "smooth_l1_loss(Tensor[] offsets, Tensor matched, Tensor targets, Tensor weight, float beta,"
    " int[] channels_last, bool needed)"
    " -> (Tensor, Tensor[])",
    _fake,
)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: Any, arguments: tuple[Any, ...], grad_enabled: bool, *maps: Tensor) -> Tensor:
        needed = grad_enabled and any(ctx.needs_input_grad[3:])
        loss, gradients = operator(maps, *arguments, [int(is_channels_last(m)) for m in maps], needed)
        ctx.dtype = maps[0].dtype
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = torch._foreach_mul(list(ctx.saved_tensors), gradient)
        return None, None, None, *(unit.to(ctx.dtype) for unit in scaled)
