"""Feature pyramids of any detector: strides, and the operators on levels that may differ in channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast import ops
from gkd_fast.instances import Instances
from gkd_fast.ops.reference.masked_imitation import imitation_level

MOST_LEVELS = 16  # of a call of ops.box_mean_pools on a GPU
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


def _one_width(features: Sequence[Tensor]) -> bool:
    """Whether all levels have as many channels."""
    return len({feature.shape[1] for feature in features}) == 1


def resized(features: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Maps [N,C,H_l,W_l], brought to the sizes of other maps by bilinear interpolation where they differ."""
    return [
        feature
        if feature.shape[2:] == other.shape[2:]
        else F.interpolate(feature, other.shape[2:], mode="bilinear", align_corners=False)
        for feature, other in zip(features, like, strict=True)
    ]


def pool(
    features: Sequence[Tensor],
    instances: Instances,
    strides: Sequence[float],
    negative: str = "clamp",
    *,
    exact: bool = False,
) -> Tensor:
    """Instance embeddings of every level (`gkd_fast.ops.box_mean_pool`).

    Args:
        features: L maps [N,C_l,H_l,W_l].
        instances: B instances.
        strides: of the levels.
        negative, exact: see the operator.

    Returns:
        [L,B,max C_l]; behind the channels of a narrower level stand zeros, which change no cosine.
    """
    where = instances.boxes, instances.image_index
    if _one_width(features):
        return ops.box_mean_pool(features, *where, strides, negative=negative, exact=exact)
    channels = [feature.shape[1] for feature in features]
    levels = [
        F.pad(ops.box_mean_pool([feature], *where, [stride], negative=negative, exact=exact), (0, max(channels) - own))
        for feature, stride, own in zip(features, strides, channels, strict=True)
    ]
    return torch.cat(levels)


def pool_both(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    strides: tuple[Sequence[float], Sequence[float]],
    negative: str = "clamp",
) -> tuple[Tensor, Tensor]:
    """`pool` in both spaces, exact; in one call where their maps agree in channels and dtype."""
    kinds = {(feature.shape[:2], feature.dtype) for feature in (*student, *teacher)}
    if len(kinds) > 1 or len(student) + len(teacher) > MOST_LEVELS:
        own = pool(student, instances, strides[0], negative, exact=True)
        return own, pool(teacher, instances, strides[1], negative, exact=True)
    where = instances.boxes, instances.image_index, (*strides[0], *strides[1])
    own, other = ops.box_mean_pools((student, teacher), *where, negative=negative, exact=True)
    return own, other


def imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    omega: Tensor,
    strides: Sequence[float],
    overlap: str = "max",
    levels: str = "own",
    rest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the squared differences under the boxes and outside of them (`gkd_fast.ops.imitation_sums`).

    Args:
        student, teacher: L maps [N,C_l,H_l,W_l] each.
        instances: B instances.
        omega: their weights [L,B].
        strides: of the levels.
        overlap: see the operator.
        levels: "own": a box is painted on the level of its size; "every": on all.
        rest: weights of the cells outside of boxes [sum of N*H_l*W_l], level after level; None: 1.

    Returns:
        The sums [2,L], under the boxes and outside; the boxes' weights and the number of cells outside [2,L].
    """
    where = instances.boxes, instances.image_index
    if _one_width(student):
        return ops.imitation_sums(student, teacher, *where, omega, strides, overlap=overlap, levels=levels, trust=rest)
    if levels == "own":
        # A weight of NaN paints nothing: each level by itself takes all boxes.
        level = imitation_level(instances.boxes, len(student), BASE_SIZE)
        omega = omega.where(level == torch.arange(len(student), device=level.device)[:, None], torch.nan)
    parts: Sequence[Tensor | None] = [None] * len(student)
    if rest is not None:
        parts = rest.split([feature[:, 0].numel() for feature in student])
    sums = [
        ops.imitation_sums([s], [t], *where, omega[n, None], [strides[n]], overlap=overlap, trust=parts[n])
        for n, (s, t) in enumerate(zip(student, teacher, strict=True))
    ]
    squares, weights = (torch.cat(parts, 1) for parts in zip(*sums, strict=True))
    return squares, weights


def means_of(features: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """The mean of every channel [C_l] of maps [N,C_l,H_l,W_l] (`gkd_fast.ops.channel_means`)."""
    if _one_width(features):
        return ops.channel_means(features)
    return [ops.channel_means([feature])[0] for feature in features]


def trust(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    student_means: Tensor | Sequence[Tensor],
    teacher_means: Tensor | Sequence[Tensor],
    *,
    filled: bool,
) -> Tensor:
    """What cells count as background (`gkd_fast.ops.background_trust`).

    Args:
        student, teacher: L maps [N,C_l,H_l,W_l] each.
        student_prototypes, teacher_prototypes: [L,P,max C_l], zeros behind the channels of a narrower level.
        student_means, teacher_means: of the channels of each level [C_l].
        filled: rows of zeros are no prototypes.

    Returns:
        [sum of N*H_l*W_l], level after level.
    """
    if _one_width(student) and _one_width(teacher):
        means = (m if isinstance(m, Tensor) else torch.stack(list(m)) for m in (student_means, teacher_means))
        return ops.background_trust(student, teacher, student_prototypes, teacher_prototypes, *means, filled=filled)
    levels = [
        ops.background_trust(
            [s],
            [t],
            student_prototypes[level, None, :, : s.shape[1]],
            teacher_prototypes[level, None, :, : t.shape[1]],
            student_means[level][None],
            teacher_means[level][None],
            filled=filled,
        )
        for level, (s, t) in enumerate(zip(student, teacher, strict=True))
    ]
    return torch.cat(levels)
