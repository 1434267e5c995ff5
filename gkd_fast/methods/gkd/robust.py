"""Robust distilling module (RDM): global knowledge, and local knowledge weighted by its discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast import ops, parallel
from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.methods.gkd.bank import PrototypeBank
from gkd_fast.methods.gkd.settings import GKDSettings
from gkd_fast.methods.units import Units
from gkd_fast.ops.reference.masked_imitation import imitation_level
from gkd_fast.ops.reference.soft_label_divergence import row_divergence
from gkd_fast.pyramids import BASE_SIZE, imitation, means_of, pool_both, trust

Strides = tuple[Sequence[float], Sequence[float]]
"""Of the student's and of the teacher's levels, in pixels."""


class Adapters(nn.Module):
    """One convolution per level from the student's to the teacher's channels, with an optional ReLU.

    Args:
        channels: of student and teacher on each level.
        kernel: cells a side of the convolution, odd.
        relu: whether a ReLU follows.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], *, kernel: int = 1, relu: bool = False) -> None:
        super().__init__()
        self.padding = kernel // 2
        self.levels = nn.ModuleList(
            nn.Conv2d(student, teacher, kernel, padding=self.padding) for student, teacher in channels
        )
        self.relu = relu

    def forward(self, features: Sequence[Tensor], units: Units | None = None) -> list[Tensor]:
        """L maps [N,C_S,H,W] -> L maps [N,C_T,H,W]; with units mean + deviation * convolution, in one convolution.

        A convolution that starts with outputs near 1 would need hundreds of steps to grow to a teacher of large maps.
        """
        adapted = []
        convolutions: list[Any] = list(self.levels)
        for level, (conv, feature) in enumerate(zip(convolutions, features, strict=True)):
            weight, bias = conv.weight, conv.bias
            if units is not None:
                deviation = units.deviations[level]
                weight, bias = weight * deviation, bias * deviation + units.means[level]
            adapted.append(F.conv2d(feature, weight, bias, padding=self.padding))
        return [F.relu(feature) for feature in adapted] if self.relu else adapted


def robust_weights(
    student: Tensor,
    teacher: Tensor,
    level: Tensor,
    labels: Tensor,
    bank: PrototypeBank,
    instance: Tensor | None = None,
) -> Tensor:
    """omega of embeddings that each belong to one level (`gkd_fast.ops.robust_weights`).

    Args:
        student, teacher: [S,C_S], [S,C_T].
        level: int64 [S].
        labels: int64 [B], class from 0; of a negative one the weight means nothing.
        bank: on the same device.
        instance: int64 [S], whose label an embedding has, of a negative one the weight means nothing; None: its own.

    Returns:
        [S], without gradient; 1 for a class without prototypes.
    """
    prototypes = bank.student, bank.teacher, bank.class_offsets
    return ops.robust_weights(student, teacher, level, labels, *prototypes, most=bank.most, instance=instance)


def instance_weights(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    bank: PrototypeBank,
    settings: GKDSettings,
    strides: Strides | None = None,
) -> Tensor:
    """omega of instances on every level, from the mean of the cells under their boxes.

    Args:
        student, teacher: L maps [N,C_S,H_l,W_l], [N,C_T,H_l,W_l].
        instances: B instances.
        bank: on the same device.
        settings: negative, robust_weights, positive_weights.
        strides: None: those of the bank in both.

    Returns:
        [L,B], without gradient.
    """
    with torch.no_grad():
        _, omega = discrepancy(student, teacher, instances, bank, settings, strides)
        omega = _applied(omega, instances, settings)
    return omega.clamp(min=0) if settings.positive_weights else omega


def _applied(omega: Tensor, instances: Instances, settings: GKDSettings) -> Tensor:
    """omega [L,B], or 1 for every instance where the weights are off; 0 for padding."""
    return omega if settings.robust_weights else (instances.labels >= 0).to(omega.dtype).expand_as(omega)


def discrepancy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    bank: PrototypeBank,
    settings: GKDSettings,
    strides: Strides | None = None,
) -> tuple[Tensor, Tensor]:
    """The discrepancy of each level [L], and omega [L,B]; arguments as of `instance_weights`."""
    strides = strides or (bank.strides, bank.strides)
    own, other = pool_both(student, teacher, instances, strides, settings.negative)
    return ops.pairwise_discrepancy(own, other, bank.student, bank.teacher, instances.labels, bank.class_offsets)


def background_trust(
    student: Sequence[Tensor], teacher: Sequence[Tensor], bank: PrototypeBank, units: Units | None = None
) -> Tensor:
    """What each cell counts as background (`gkd_fast.ops.background_trust`).

    It is the projection of instances on the prototypes (paper, robust distilling) carried on to cells without a class.
    Each channel's mean is taken off, which cosines of raw maps would mostly compare.

    Args:
        student, teacher: L maps [N,C_S,H_l,W_l], [N,C_T,H_l,W_l].
        bank: on the same device.
        units: give the teacher's means; None: those of the batch, as the student's always are.

    Returns:
        [sum of N*H_l*W_l] in 0..1, level after level, float32.
    """
    means = channel_means(student), channel_means(teacher) if units is None else units.means
    # Only a bank of full length may be one that was filled up.
    filled = bank.student.shape[1] == len(bank.classes) * bank.most
    return trust(student, teacher, bank.student, bank.teacher, *means, filled=filled)


def channel_means(maps: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """The mean of every channel [C_l] over all cells of the global batch."""
    own = means_of(maps)
    if parallel.world_size() == 1:
        return own
    cells = [feature.shape[0] * feature.shape[2] * feature.shape[3] for feature in maps]
    sums = [mean * count for mean, count in zip(own, cells, strict=True)]
    counts = _on_device_of(sums[0], cells)
    *totals, counts = parallel.total(torch.cat([*sums, counts])).split([*(part.numel() for part in sums), len(maps)])
    return [total / count.clamp(min=1) for total, count in zip(totals, counts, strict=True)]


def soft_label_loss(
    soft: SoftPairs, omega: Tensor, instances: Instances, bank: PrototypeBank | None, settings: GKDSettings
) -> Tensor:
    """mean_i omega_i T^2 mean_c KL(teacher || student) over the places of an instance, at temperature T.

    The losses of processes that train together add up to the mean over all of them.

    Args:
        soft: logits of both networks.
        omega: [L,B] robust weights of the instances.
        instances: for their classes.
        bank: for the weights of a two-stage detector, which come from the RoI features; None: those of `omega`.
        settings: temperature, one_stage_soft, robust_weights, positive_weights.
    """
    divergence, rows = _soft_label_sums(soft, omega, instances, bank, settings)
    return divergence / rows.clamp(min=1)


def _soft_label_sums(
    soft: SoftPairs, omega: Tensor, instances: Instances, bank: PrototypeBank | None, settings: GKDSettings
) -> tuple[Tensor, Tensor]:
    """The weighted divergences of this process, summed, and the number of rows of all; see `soft_label_loss`."""
    if soft.student.shape[0] == 0 or len(instances.boxes) == 0:
        return soft.student.float().sum() * 0, parallel.total(omega.new_zeros(()))
    if not settings.robust_weights:
        weights = torch.ones_like(soft.instance, dtype=omega.dtype)
    elif bank is not None and soft.student_embedding is not None and soft.teacher_embedding is not None:
        embeddings = soft.student_embedding, soft.teacher_embedding
        weights = robust_weights(*embeddings, soft.level, instances.labels, bank, soft.instance)
    else:
        instance = soft.instance.clamp(min=0)
        weights = omega[imitation_level(instances.boxes, len(omega), BASE_SIZE)[instance], instance]
    one_stage = soft.student_embedding is None and not soft.exclusive
    if one_stage and settings.one_stage_soft == "published":
        return _published_one_stage(soft, weights, len(omega), settings)
    divergence, count = ops.soft_label_divergence(
        soft.student,
        soft.teacher,
        weights,
        soft.instance,
        temperature=settings.temperature,
        binary=one_stage,
        positive=settings.positive_weights,
    )
    return divergence, parallel.total(count)


def _published_one_stage(soft: SoftPairs, weights: Tensor, levels: int, settings: GKDSettings) -> tuple[Tensor, Tensor]:
    """Of the places with an instance the weights stay image-major while the rows become level-major."""
    real = soft.instance >= 0
    weights = weights.where(real, 0)[(~real).to(torch.uint8).argsort(stable=True)]
    if settings.positive_weights:
        weights = weights.clamp(min=0)
    logits = (logits.float() / settings.temperature for logits in (soft.student, soft.teacher))
    divergence = row_divergence(*logits, binary=False)[soft.level.where(real, levels).argsort(stable=True)]
    return (weights * divergence).sum() * settings.temperature**2, parallel.total(real.sum().float())


def robust_distilling(
    student: Sequence[Tensor],
    adapted: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    soft: SoftPairs | None,
    bank: PrototypeBank | None,
    settings: GKDSettings,
    *,
    stage: str,
    kappa: float | Tensor,
    strides: Strides | None = None,
    imitated: Sequence[Tensor] | None = None,
    units: Units | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """All terms of the robust distilling module.

    Args:
        student: L raw student maps [N,C_S,H_l,W_l].
        adapted: the same through the adapters, [N,C_T,H_l,W_l].
        teacher: L teacher maps [N,C_T,...].
        instances: B instances.
        soft: logits for the soft-label loss, or None to leave it out.
        bank: prototypes; None while there are none: every weight is then 1, and the global loss 0. An instance of a
            negative class is padding, whose weight is 0.
        settings: weights and variants of the terms.
        stage: ``two_stage`` (feature losses: mean over levels) or ``one_stage`` (sum, but for the mean with units).
        kappa: attenuation, 1 - epoch / epochs.
        strides: None: those of the bank in both networks.
        imitated: the teacher's maps in the sizes of the student's; None: they have them.
        units: the feature losses are divided by the variance of each level, and the mean over levels is taken; None: as
            published.

    Returns:
        The weighted terms ``global``, ``foreground``, ``background``, ``soft`` (float32 scalars, to be added
        up, over all processes that train together), and the robust weights omega [L,B].
    """
    if strides is None:
        assert bank is not None
        strides = bank.strides, bank.strides
    levels = rest = None
    if bank is None:
        omega = (instances.labels >= 0).to(instances.boxes.dtype).expand(len(student), -1)
    else:
        levels, omega = discrepancy(student, teacher, instances, bank, settings, strides)
        levels, omega = _participating(levels, instances, bank), _applied(omega, instances, settings)
    imitated = imitated or teacher
    if bank is not None and settings.background_trust == "prototypes":
        rest = background_trust(student, imitated, bank, units)
    squares, counts, least = _imitation(adapted, imitated, instances, omega, strides[0], settings, rest)
    divergence = rows = None
    if soft is not None:
        divergence, rows = _soft_label_sums(soft, omega, instances, bank, settings)
    share = least / (len(student) if stage == "two_stage" or units is not None else 1)
    weights = (
        settings.global_weight,
        settings.foreground_weight * share,
        settings.background_weight * share,
        settings.soft_weight,
    )
    variances = None if units is None else units.variances
    terms = ops.loss_terms(
        levels, squares, divergence, counts, weights=weights, least=least, kappa=kappa, variances=variances, rows=rows
    )
    named = dict(zip(("global", "foreground", "background", "soft"), terms, strict=True))
    if soft is None:
        del named["soft"]
    return named, omega


def _imitation(
    adapted: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    omega: Tensor,
    strides: Sequence[float],
    settings: GKDSettings,
    rest: Tensor | None,
) -> tuple[Tensor, Tensor, float]:
    """Squares [2,L], what they are divided by [2,L] but for a common factor, and that factor, the least divisor."""
    squares, weights = imitation(
        adapted, teacher, instances, omega, strides, settings.overlap, settings.box_levels, rest
    )
    channels, counts = [feature.shape[1] for feature in teacher], parallel.total(weights)
    if len(set(channels)) == 1:
        return squares, counts, 1 / (2 * channels[0])
    return squares, 2 * _on_device_of(counts, channels) * counts, 1.0


def _on_device_of(like: Tensor, numbers: Sequence[float]) -> Tensor:
    """Numbers [n] beside a tensor; to copy them from the host, it would wait for the device."""
    return torch.cat([like.new_full((1,), number) for number in numbers])


def _participating(levels: Tensor, instances: Instances, bank: PrototypeBank) -> Tensor:
    """Discrepancies [L] by this process's part of the instances whose class has prototypes."""
    if parallel.world_size() == 1:
        return levels
    label = instances.labels.clamp(min=0)
    has_prototypes = bank.class_offsets[label + 1] > bank.class_offsets[label]
    own = (has_prototypes & (instances.labels >= 0)).sum().float()
    return levels * (own / parallel.total(own).clamp(min=1))
