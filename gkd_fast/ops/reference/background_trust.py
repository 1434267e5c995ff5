"""Agreement of two feature spaces in how much each cell resembles a prototype, some prototypes at a time."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype
from gkd_fast.ops.reference.prototype_projection import SHORTEST, unit

_NEVER = -1e30  # below any cosine, and finite
_PROTOTYPES_AT_ONCE = 128


def channel_means(features: Sequence[Tensor]) -> Tensor:
    """The mean of every channel [L,C]; see `gkd_fast.ops.channel_means`."""
    dtype = accumulation_dtype(features[0].dtype)
    counts = [max(1, feature.shape[0] * feature.shape[2] * feature.shape[3]) for feature in features]
    return torch.stack([f.to(dtype).sum((0, 2, 3)) / count for f, count in zip(features, counts, strict=True)])


def background_trust(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    student_means: Tensor,
    teacher_means: Tensor,
    *,
    filled: bool,
) -> Tensor:
    """r [sum of N*H*W], level after level; see `gkd_fast.ops.background_trust`."""
    spaces = (student, student_prototypes, student_means), (teacher, teacher_prototypes, teacher_means)
    levels = []
    for level in range(len(student)):
        s, t = (
            nearest_cosine(maps[level], prototypes[level], means[level], filled=filled)
            for maps, prototypes, means in spaces
        )
        levels.append((t.clamp(min=0) * (1 - (s - t).abs()).clamp(min=0)).flatten())
    return torch.cat(levels)


def nearest_cosine(feature: Tensor, prototypes: Tensor, mean: Tensor, *, filled: bool = False) -> Tensor:
    """max_m cos(f - mu, p_m - mu) of every cell.

    Args:
        feature: [N,C,H,W].
        prototypes: [P,C].
        mean: mu [C].
        filled: rows of zeros are no prototypes.

    Returns:
        [N,H,W], float32 (float64 if an input is); far below -1 where there is no prototype.
    """
    dtype = accumulation_dtype(feature.dtype, prototypes.dtype, mean.dtype)
    mean = mean.to(dtype)
    centred = feature.to(dtype) - mean[:, None, None]
    units = unit(prototypes.to(dtype) - mean)
    barred = units.new_zeros(len(units))
    if filled:
        barred = barred.masked_fill(~prototypes.any(1), _NEVER)
    # Some prototypes at a time: the cosines of all of them would be larger than the map.
    nearest = [centred.new_full((feature.shape[0], *feature.shape[2:]), _NEVER)]
    for part, own in zip(units.split(_PROTOTYPES_AT_ONCE), barred.split(_PROTOTYPES_AT_ONCE), strict=True):
        if part.numel():
            nearest.append(F.conv2d(centred, part[:, :, None, None], own).amax(1))
    length = centred.square().sum(1).sqrt()
    return (torch.stack(nearest).amax(0) / length.clamp(min=SHORTEST)).masked_fill(length < SHORTEST, 0.0)
