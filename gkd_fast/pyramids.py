"""Feature pyramids of any detector: strides, and the operators on levels that may differ in channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast import ops
from gkd_fast.instances import Instances
from gkd_fast.ops import ImitationSums
from gkd_fast.ops.reference.masked_imitation import imitation_level

BASE_SIZE = 56.0  # pixels; boxes of twice this side leave the first level, the default of ops.masked_imitation


def infer_strides(size: Sequence[int], features: Sequence[Tensor]) -> tuple[float, ...]:
    """Pixels a cell on each level, from the sizes of the batch and of its maps.

    A map of stride s has side / s cells, rounded up (padded convolutions) or down, so that many strides explain a
    small map: a power of two goes before other numbers, for a map of one cell twice the stride of the level before.

    Args:
        size: height and width of the batch in pixels.
        features: L maps [N,C,H_l,W_l].

    Raises:
        ValueError: if the two sides of a map have other strides.
    """
    strides: list[float] = []
    for feature in features:
        cells = tuple(feature.shape[-2:])
        quotients = [side / count for side, count in zip(size, cells, strict=True)]
        quotient = quotients[0] if cells[0] > cells[1] else quotients[1]
        doubled = 2 * strides[-1] if strides else math.inf
        power = 2.0 ** round(math.log2(quotient))
        candidates = (doubled, power) if max(cells) == 1 else (power, doubled)
        rounding = (math.ceil, math.floor)
        explaining = (s for rounded in rounding for s in candidates if _explains(s, size, cells, rounded))
        found = next(explaining, None)
        if found is None and max(quotients) > 1.5 * min(quotients):
            raise ValueError(
                f"features: expected maps of one stride a side, got {list(cells)} cells for {list(size)} pixels"
            )
        found = found or quotient
        strides.append(int(found) if found == int(found) else found)
    return tuple(strides)


def _explains(stride: float, size: Sequence[int], cells: Sequence[int], rounded: Callable[[float], int]) -> bool:
    return all(rounded(side / stride) == count for side, count in zip(size, cells, strict=True))


def one_dtype(features: Sequence[Tensor]) -> list[Tensor]:
    """The maps as they are where they agree in dtype, else in float32."""
    return list(features) if len({feature.dtype for feature in features}) == 1 else [f.float() for f in features]


def resized(features: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Maps [N,C,H_l,W_l], brought to the sizes of other maps by bilinear interpolation where they differ."""
    return [
        feature
        if feature.shape[2:] == other.shape[2:]
        else F.interpolate(feature, other.shape[2:], mode="bilinear", align_corners=False)
        for feature, other in zip(features, like, strict=True)
    ]


def pool(features: Sequence[Tensor], instances: Instances, strides: Sequence[float], negative: str = "clamp") -> Tensor:
    """Instance embeddings of every level (`gkd_fast.ops.box_mean_pool`).

    Args:
        features: L maps [N,C_l,H_l,W_l].
        instances: B instances.
        strides: of the levels.
        negative: see the operator.

    Returns:
        [L,B,max C_l]; behind the channels of a narrower level stand zeros, which change no cosine.
    """
    where = instances.boxes, instances.image_index
    channels = [feature.shape[1] for feature in features]
    if len(set(channels)) == 1:
        return ops.box_mean_pool(features, *where, strides, negative=negative)
    levels = [
        F.pad(ops.box_mean_pool([feature], *where, [stride], negative=negative), (0, max(channels) - own))
        for feature, stride, own in zip(features, strides, channels, strict=True)
    ]
    return torch.cat(levels)


def imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    omega: Tensor,
    strides: Sequence[float],
    overlap: str = "max",
    levels: str = "own",
    trust: Sequence[Tensor] | None = None,
) -> ImitationSums:
    """Sums of the squared differences under the boxes and outside of them (`gkd_fast.ops.masked_imitation`).

    Args:
        student, teacher: L maps [N,C_l,H_l,W_l] each.
        instances: B instances.
        omega: their weights [L,B].
        strides: of the levels.
        overlap: see the operator.
        levels: "own": a box is painted on the level of its size; "every": on all.
        trust: weights of the cells outside of boxes, L maps [N,H_l,W_l]; None: 1.
    """
    where = instances.boxes, instances.image_index
    if len({feature.shape[1] for feature in student}) == 1:
        return ops.masked_imitation(
            student, teacher, *where, omega, strides, overlap=overlap, levels=levels, trust=trust
        )
    if levels == "own":
        # A weight of NaN paints nothing: each level by itself takes all boxes.
        level = imitation_level(instances.boxes, len(student), BASE_SIZE)
        omega = omega.where(level == torch.arange(len(student), device=level.device)[:, None], torch.nan)
    sums = [
        ops.masked_imitation(
            [s], [t], *where, omega[n, None], [strides[n]], overlap=overlap, trust=trust and [trust[n]]
        )
        for n, (s, t) in enumerate(zip(student, teacher, strict=True))
    ]
    return ImitationSums(*(torch.cat(parts) for parts in zip(*sums, strict=True)))
