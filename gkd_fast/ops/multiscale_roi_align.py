"""RoIAlign over a feature pyramid, and the module that replaces torchvision's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import check_boxes, check_features, check_strides
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define
from gkd_fast.ops._pyramid import PyramidShape


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    strides: Sequence[float],
    *,
    output_size: int | tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: int = 224,
    canonical_level: int = 4,
) -> Tensor:
    """RoIAlign (He et al., Mask R-CNN) from the level that fits each box (Lin et al., FPN, equation 1).

    The level is floor(canonical_level + log2(sqrt(area) / canonical_size) + 1e-6), clamped to log2 of the
    first and last stride. A box with a NaN coordinate, and with several levels a box of negative area, pools
    to zeros; on a GPU so does a box whose image does not exist.

    Args:
        features: L maps [N,C,H_l,W_l], float32, float64, bfloat16 or float16, any memory format; up to 16 on
            a GPU.
        boxes: float32 [B,4], x1 y1 x2 y2 in pixels of the padded batch.
        image_index: int64 [B], the image of each box, in [0,N).
        strides: pixels per cell, one a level, each at most twice the one before.
        output_size: bins R, or (R_h, R_w).
        sampling_ratio: sample points along each side of a bin; 0 takes ceil(side of the box in cells / R).
        aligned: shift by half a cell, so that cell centres are samples; without it boxes count as at least
            one cell wide.
        canonical_size: side in pixels of a box that belongs to `canonical_level`.
        canonical_level: log2 of the stride for a box of `canonical_size`.

    Returns:
        [B,C,R_h,R_w] in the features' dtype, computed in float32 or wider. Differentiable in `features`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_features("features", features)
    check_boxes(features, boxes, image_index)
    check_strides(strides, len(features))
    if round(math.log2(strides[-1] / strides[0])) >= len(strides):
        raise ValueError(f"strides: expected each at most twice the one before, got {tuple(strides)}")
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"output_size: expected a positive number or a pair of them, got {output_size}")
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio: expected 0 (adaptive) or a positive number, got {sampling_ratio}")
    kernels = ("cpu",) if features[0].dtype == torch.float64 else ("cpu", "cuda")
    if backend_for("multiscale_roi_align", features[0].device, kernels) == "reference":
        return reference.multiscale_roi_align(
            features,
            boxes,
            image_index,
            strides,
            output_size=bins,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            canonical_size=canonical_size,
            canonical_level=canonical_level,
        )
    sampling = ([float(s) for s in strides], sampling_ratio, aligned, canonical_size, canonical_level)
    return _RoIAlign.apply(boxes, image_index, bins, sampling, *features)


def _fake(features: list[Tensor], boxes: Tensor, image_index: Tensor, output_size: list[int], *sampling: Any) -> Tensor:
    return features[0].new_empty((boxes.shape[0], features[0].shape[1], *output_size))


def _fake_backward(
    gradient: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    images: int,
    heights: list[int],
    widths: list[int],
    channels_last: list[int],
    *sampling: Any,
) -> list[Tensor]:
    return PyramidShape(images, gradient.shape[1], heights, widths, channels_last).new_empty(gradient)


_SAMPLING = "float[] strides, int sampling_ratio, bool aligned, int canonical_size, int canonical_level"
_forward = define(
    f"multiscale_roi_align(Tensor[] features, Tensor boxes, Tensor image_index, int[] output_size, {_SAMPLING})"
    " -> Tensor",
    _fake,
)
_backward = define(
    "multiscale_roi_align_backward(Tensor gradient, Tensor boxes, Tensor image_index, SymInt images,"
    f" SymInt[] heights, SymInt[] widths, int[] channels_last, {_SAMPLING}) -> Tensor[]",
    _fake_backward,
)


class _RoIAlign(torch.autograd.Function):
    """Keeps the shapes of the maps for the backward pass, not the maps."""

    @staticmethod
    def forward(
        ctx: Any,
        boxes: Tensor,
        image_index: Tensor,
        bins: tuple[int, int],
        sampling: tuple[Any, ...],
        *features: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(boxes, image_index)
        ctx.shape, ctx.sampling = PyramidShape.of(features), sampling
        return _forward(list(features), boxes, image_index, list(bins), *sampling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shape = ctx.shape
        layout = shape.images, shape.heights, shape.widths, shape.channels_last
        return None, None, None, None, *_backward(gradient, *ctx.saved_tensors, *layout, *ctx.sampling)


class MultiScaleRoIAlign(nn.Module):
    """Drop-in replacement for `torchvision.ops.MultiScaleRoIAlign`, with `aligned` in addition.

    Args:
        featmap_names: keys of the maps to pool from, fine to coarse; other maps are ignored.
        output_size: bins R, or (R_h, R_w).
        sampling_ratio: sample points along each side of a bin; 0 is adaptive.
        canonical_scale: side in pixels of a box that belongs to `canonical_level`.
        canonical_level: log2 of the stride for a box of `canonical_scale`.
        aligned: shift by half a cell.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = aligned

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool every box.

        Args:
            x: maps [N,C,H_l,W_l] by name.
            boxes: for each image float [B_i,4], x1 y1 x2 y2 in its pixels.
            image_shapes: (height, width) of each image before padding, from which the strides are inferred.

        Returns:
            [sum B_i,C,R_h,R_w], image after image.
        """
        image_index = torch.cat([b.new_full((b.shape[0],), i, dtype=torch.int64) for i, b in enumerate(boxes)])
        height = max(shape[0] for shape in image_shapes)
        return self.pool(x, torch.cat(boxes).float(), image_index, (height, 0))

    def pool(self, x: dict[str, Tensor], boxes: Tensor, image_index: Tensor, size: tuple[int, int]) -> Tensor:
        """Pool boxes [B,4] of the images `image_index` [B], padded to one height and width; see `forward`."""
        features = [x[name] for name in x if name in self.featmap_names]
        return multiscale_roi_align(
            features,
            boxes,
            image_index,
            [infer_stride(feature, [size]) for feature in features],
            output_size=(self.output_size[0], self.output_size[1]),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_scale,
            canonical_level=self.canonical_level,
        )

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def infer_stride(feature: Tensor, image_shapes: Sequence[tuple[int, int]]) -> float:
    """Power of two nearest to padded image height / map height, as torchvision infers it."""
    height = max(shape[0] for shape in image_shapes)
    return 1.0 / 2.0 ** round(math.log2(feature.shape[-2] / height))
