"""RoIAlign over a pyramid: every output bin is one weighted bag of rows of the flattened pyramid."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype

_MOST_SAMPLES = 2**24


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    strides: Sequence[float],
    *,
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: int,
    canonical_level: int,
) -> Tensor:
    """Pooled features [B,C,R_h,R_w]; see `gkd_fast.ops.multiscale_roi_align`."""
    dtype = accumulation_dtype(features[0].dtype)
    count, channels = boxes.shape[0], features[0].shape[1]
    defined = ~boxes.isnan().any(dim=1)
    level, assigned = assign_level(boxes, strides, canonical_size, canonical_level)

    table = torch.cat([f.permute(0, 2, 3, 1).reshape(-1, channels) for f in features]).to(dtype)
    heights = boxes.new_tensor([f.shape[2] for f in features], dtype=torch.int64)[level]
    widths = boxes.new_tensor([f.shape[3] for f in features], dtype=torch.int64)[level]
    rows_per_level = [f.shape[0] * f.shape[2] * f.shape[3] for f in features]
    level_start = boxes.new_tensor([sum(rows_per_level[:i]) for i in range(len(features))], dtype=torch.int64)
    first_row = level_start[level] + image_index * heights * widths

    scale = boxes.new_tensor([1.0 / s for s in strides], dtype=dtype)[level]
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (boxes.nan_to_num().to(dtype) * scale[:, None] - offset).unbind(1)
    y, wy = _axis(y1, y2, heights, output_size[0], sampling_ratio, aligned)
    x, wx = _axis(x1, x2, widths, output_size[1], sampling_ratio, aligned)

    # [B,R_h,1,S_h,1] with [B,1,R_w,1,S_w]: the two axes are independent, a bin's bag is their outer product.
    rows = (
        first_row[:, None, None, None, None] + (y * widths[:, None, None])[:, :, None, :, None] + x[:, None, :, None, :]
    )
    weight = wy[:, :, None, :, None] * wx[:, None, :, None, :]
    weight = weight * (defined & assigned)[:, None, None, None, None]
    bags, samples = count * output_size[0] * output_size[1], y.shape[2] * x.shape[2]
    pooled = F.embedding_bag(
        rows.reshape(bags, samples), table, per_sample_weights=weight.reshape(bags, samples), mode="sum"
    )
    return pooled.view(count, *output_size, channels).permute(0, 3, 1, 2).to(features[0].dtype).contiguous()


def assign_level(
    boxes: Tensor, strides: Sequence[float], canonical_size: int, canonical_level: int
) -> tuple[Tensor, Tensor]:
    """Level [B] of each box, and whether it has one: with several levels, a box of negative area has none."""
    if len(strides) == 1:
        return boxes.new_zeros(boxes.shape[0], dtype=torch.int64), boxes.new_ones(boxes.shape[0], dtype=torch.bool)
    lowest, highest = (round(math.log2(s)) for s in (strides[0], strides[-1]))
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    target = (canonical_level + torch.log2(size / canonical_size) + 1e-6).floor().clamp(lowest, highest)
    assigned = ~target.isnan()
    return target.nan_to_num(nan=float(lowest)).long() - lowest, assigned


def _axis(
    start: Tensor, end: Tensor, size: Tensor, bins: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Cells and weights [B,bins,2*samples] of the sample points along one axis.

    With sampling_ratio 0 the number of samples is ceil(length / bins) for each box, of which those are looked at that
    may lie in the map; their largest number is read back. A bin of more than 2**24 samples has none: beyond, float32
    tells them no longer apart, and the map's share of the bin is nothing.
    """
    length = end - start if aligned else (end - start).clamp(min=1.0)
    bin_size = (length / bins)[:, None, None]
    base = start[:, None, None] + torch.arange(bins, device=start.device)[None, :, None] * bin_size
    if sampling_ratio > 0:
        samples = torch.full_like(bin_size, sampling_ratio)
        first, most = torch.zeros_like(base), sampling_ratio
    else:
        samples = bin_size.ceil()
        samples = samples.where((samples >= 1) & (samples <= _MOST_SAMPLES), 0.0)
        step = bin_size / samples.clamp(min=1.0)  # more than half a cell
        first = ((-1 - base) / step - 4).floor().nan_to_num().clamp(min=0.0).minimum(samples)
        inside = (((size[:, None, None] - base) / step + 4).ceil().nan_to_num().minimum(samples) - first).clamp(min=0.0)
        most = max(1, int(inside.max())) if inside.numel() else 1
    sample_index = first + torch.arange(most, device=start.device)
    position = base + (sample_index + 0.5) * bin_size / samples.clamp(min=1.0)

    size = size[:, None, None]
    used = (sample_index < samples) & (position >= -1.0) & (position <= size)
    last = size - 1
    position = torch.minimum(position.nan_to_num().clamp(min=0.0), last.to(position.dtype))
    low = position.long()
    high = torch.minimum(low + 1, last)
    fraction = position - low
    share = used.to(position.dtype) / samples.clamp(min=1.0)
    return torch.cat([low, high], dim=2), torch.cat([(1.0 - fraction) * share, fraction * share], dim=2)
