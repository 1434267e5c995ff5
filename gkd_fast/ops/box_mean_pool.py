"""Instance embeddings: the mean of the feature cells under each box, on every level."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_boxes, check_choice, check_features, check_strides
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


def box_mean_pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    strides: Sequence[float],
    *,
    negative: str = "clamp",
    exact: bool = False,
) -> Tensor:
    """Mean feature vector under each box on every level of a pyramid (paper, instance embedding).

    The mean runs over the cells of rows floor(y1/s)..floor(y2/s) and columns floor(x1/s)..floor(x2/s), both
    ends inclusive and clamped into the map, so that at least one cell is taken. An inverted box takes its
    first row or column. A box with a NaN coordinate has a NaN embedding and passes no gradient; on a GPU so
    has a box whose image does not exist.

    Args:
        features: L maps [N,C,H_l,W_l], float32, float64, bfloat16 or float16, any memory format; up to 16 on
            a GPU.
        boxes: float32 [B,4], x1 y1 x2 y2 in pixels of the padded batch.
        image_index: int64 [B], the image of each box, in [0,N).
        strides: pixels per cell, one a level.
        negative: "clamp" moves negative coordinates to 0; "mirror" takes their absolute value, as the
            published code does.
        exact: give the means as they were summed, in float32 or wider.

    Returns:
        [L,B,C] in the features' dtype unless `exact`, summed in float32 or wider. Differentiable in `features`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    (means,) = box_mean_pools([features], boxes, image_index, strides, negative=negative, exact=exact)
    return means


def box_mean_pools(
    pyramids: Sequence[Sequence[Tensor]],
    boxes: Tensor,
    image_index: Tensor,
    strides: Sequence[float],
    *,
    negative: str = "clamp",
    exact: bool = False,
) -> tuple[Tensor, ...]:
    """`box_mean_pool` of several pyramids in one call; a backward pass runs for those alone that have a gradient.

    Args:
        pyramids: lists of maps [N,C,H_l,W_l] that agree in N, C and dtype.
        boxes, image_index, negative, exact: see `box_mean_pool`.
        strides: of the levels of all pyramids, one after another.

    Returns:
        Embeddings [L_i,B,C] of each pyramid.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    features = [feature for maps in pyramids for feature in maps] if len(pyramids) > 1 else pyramids[0]
    check_features("features", features)
    check_boxes(features, boxes, image_index)
    check_strides(strides, len(features))
    check_choice("negative", negative, ("clamp", "mirror"))
    parts = [len(maps) for maps in pyramids]
    kernels = ("cpu",) if features[0].dtype == torch.float64 else ("cpu", "cuda")
    if backend_for("box_mean_pool", boxes.device, kernels) == "reference":
        means = reference.box_mean_pool(features, boxes, image_index, strides, negative=negative, exact=exact)
        return means.split(parts)
    found = _MeanPool.apply(parts, boxes, image_index, [float(s) for s in strides], negative == "mirror", *features)
    return found if exact else tuple(means.to(features[0].dtype) for means in found)


def _fake(features: list[Tensor], boxes: Tensor, image_index: Tensor, strides: list[float], mirror: bool) -> Tensor:
    dtype = accumulation_dtype(features[0].dtype)
    return boxes.new_empty(len(features), boxes.shape[0], features[0].shape[1], dtype=dtype)


def _fake_backward(
    gradient: Tensor, features: list[Tensor], boxes: Tensor, image_index: Tensor, strides: list[float], mirror: bool
) -> list[Tensor]:
    return [torch.empty_like(feature) for feature in features]


_forward = define(
    "box_mean_pool(Tensor[] features, Tensor boxes, Tensor image_index, float[] strides, bool mirror) -> Tensor",
    _fake,
)
_backward = define(
    "box_mean_pool_backward(Tensor gradient, Tensor[] features, Tensor boxes, Tensor image_index, float[] strides,"
    " bool mirror) -> Tensor[]",
    _fake_backward,
)


class _MeanPool(torch.autograd.Function):
    """The features are kept for their shapes and layouts alone."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: list[int],
        boxes: Tensor,
        image_index: Tensor,
        strides: list[float],
        mirror: bool,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.options = parts, (strides, mirror)
        ctx.save_for_backward(boxes, image_index, *features)
        ctx.set_materialize_grads(False)
        means = _forward(features, boxes, image_index, strides, mirror)
        found = (means,) if len(parts) == 1 else tuple(means.split(parts))
        needed = iter(ctx.needs_input_grad[5:])
        fixed = [part for part, count in zip(found, parts, strict=True) if not any(list(islice(needed, count)))]
        ctx.mark_non_differentiable(*fixed)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        boxes, image_index, *features = ctx.saved_tensors
        (strides, mirror), need = ctx.options, ctx.needs_input_grad[5:]
        found: list[Tensor | None] = []
        for gradient, count in zip(gradients, ctx.parts, strict=True):
            own = slice(len(found), len(found) + count)
            if gradient is None or not any(need[own]):
                found += [None] * count
            else:
                found += _backward(gradient, features[own], boxes, image_index, strides[own], mirror)
        return None, None, None, None, None, *found
