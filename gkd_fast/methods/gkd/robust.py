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
from gkd_fast.pyramids import BASE_SIZE, imitation, pool

Strides = tuple[Sequence[float], Sequence[float]]
"""Of the student's and of the teacher's levels, in pixels."""


_NEVER = -1e30  # below any cosine, and finite
_PROTOTYPES_AT_ONCE = 128
_SHORTEST = 1e-8  # a shorter vector has a cosine of about 0 with any other


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


def robust_weights(student: Tensor, teacher: Tensor, level: Tensor, labels: Tensor, bank: PrototypeBank) -> Tensor:
    """omega of embeddings that each belong to one level (paper, robust distilling).

    omega = 1 - |max_m cos(f_S, p_S,m) - max_m cos(f_T, p_T,m)| over the prototypes of the same class.

    Args:
        student, teacher: [S,C_S], [S,C_T].
        level: int64 [S].
        labels: int64 [S], class from 0; of a negative one the weight means nothing.
        bank: on the same device.

    Returns:
        [S], without gradient; 1 for a class without prototypes.
    """
    first, last = bank.class_offsets.unfold(0, 2, 1)[labels.clamp(min=0)].unbind(1)
    index = first[:, None] + torch.arange(bank.most, device=labels.device)
    outside = index >= last[:, None]
    per_level = bank.student.shape[1]
    row = index.clamp_(max=per_level - 1) + level[:, None] * per_level

    def nearest(embedding: Tensor, prototypes: Tensor) -> Tensor:
        own, embedding = prototypes.flatten(0, 1)[row], embedding.detach().to(prototypes.dtype)
        lengths = own.norm(dim=-1).clamp_(min=_SHORTEST) * embedding.norm(dim=-1, keepdim=True).clamp_(min=_SHORTEST)
        return (own * embedding[:, None]).sum(-1).div_(lengths).masked_fill_(outside, -1).amax(1)

    discrepancy = nearest(student, bank.student) - nearest(teacher, bank.teacher)
    return (1 - discrepancy.abs()).masked_fill_(first >= last, 1.0)


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
    own = pool(student, instances, strides[0], settings.negative)
    other = pool(teacher, instances, strides[1], settings.negative)
    return ops.pairwise_discrepancy(own, other, bank.student, bank.teacher, instances.labels, bank.class_offsets)


@torch.no_grad()
def background_trust(
    student: Sequence[Tensor], teacher: Sequence[Tensor], bank: PrototypeBank, units: Units | None = None
) -> list[Tensor]:
    """What each cell counts as background: how much it resembles a prototype, as far as both spaces agree in it.

    r = max(0, c_T) max(0, 1 - |c_S - c_T|),   c = max_m cos(f - mu, p_m - mu) over all prototypes of the level,

    mu the mean of each channel, which cosines of raw maps would mostly compare. It is the projection of instances on
    the prototypes (paper, robust distilling) carried on to cells without a class.

    Args:
        student, teacher: L maps [N,C_S,H_l,W_l], [N,C_T,H_l,W_l].
        bank: on the same device.
        units: give the teacher's mu; None: that of the batch, as the student's always is.

    Returns:
        L maps [N,H_l,W_l] in 0..1, float32.
    """
    means = channel_means(student), channel_means(teacher) if units is None else units.means
    # Only a bank of full length may be one that was filled up.
    filled = bank.student.shape[1] == len(bank.classes) * bank.most
    return [
        _trust(
            nearest_cosine(own, bank.student[level], means[0][level], filled=filled),
            nearest_cosine(other, bank.teacher[level], means[1][level], filled=filled),
        )
        for level, (own, other) in enumerate(zip(student, teacher, strict=True))
    ]


def _trust(student: Tensor, teacher: Tensor) -> Tensor:
    return teacher.clamp(min=0) * (1 - (student - teacher).abs()).clamp(min=0)


def channel_means(maps: Sequence[Tensor]) -> list[Tensor]:
    """The mean of every channel [C_l] over all cells of the global batch."""
    sums = [feature.float().sum((0, 2, 3)) for feature in maps]
    cells = _on_device_of(sums[0], [f.shape[0] * f.shape[2] * f.shape[3] for f in maps])
    *totals, cells = parallel.total(torch.cat([*sums, cells])).split([*(part.numel() for part in sums), len(maps)])
    return [total / count.clamp(min=1) for total, count in zip(totals, cells, strict=True)]


def nearest_cosine(feature: Tensor, prototypes: Tensor, mean: Tensor, *, filled: bool = False) -> Tensor:
    """max_m cos(f - mu, p_m - mu) of every cell.

    Args:
        feature: [N,C,H,W].
        prototypes: [P,C], or wider with zeros behind the map's channels.
        mean: mu [C].
        filled: rows of zeros are no prototypes.

    Returns:
        [N,H,W], float32.
    """
    centred = feature.float() - mean[:, None, None]
    units = F.normalize(prototypes[:, : len(mean)].float() - mean, dim=1)[:, :, None, None]
    # Some prototypes at a time: the cosines of all of them would be larger than the map.
    parts = units.split(_PROTOTYPES_AT_ONCE)
    barred: Sequence[Tensor | None] = [None] * len(parts)
    if filled:
        barred = torch.where(prototypes.any(1), 0.0, _NEVER).split(_PROTOTYPES_AT_ONCE)
    nearest = torch.stack([F.conv2d(centred, part, own).amax(1) for part, own in zip(parts, barred, strict=True)]).amax(
        0
    )
    return nearest / centred.square().sum(1).sqrt().clamp(min=1e-8)


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
    real = soft.instance >= 0
    count = parallel.total(real.sum()).clamp(min=1)
    if soft.student.shape[0] == 0 or len(instances.boxes) == 0:
        return soft.student.sum() * 0
    student, teacher = soft.student.float() / settings.temperature, soft.teacher.float() / settings.temperature
    instance = soft.instance.clamp(min=0)
    if not settings.robust_weights:
        weights = real.to(omega.dtype)
    elif bank is not None and soft.student_embedding is not None and soft.teacher_embedding is not None:
        labels = instances.labels[instance]
        weights = robust_weights(soft.student_embedding, soft.teacher_embedding, soft.level, labels, bank)
    else:
        weights = omega[imitation_level(instances.boxes, len(omega), BASE_SIZE)[instance], instance]
    weights = weights.where(real, 0)
    if settings.positive_weights:
        weights = weights.clamp(min=0)
    matched = soft.student_embedding is None and not soft.exclusive and settings.one_stage_soft == "matched"
    divergence = (_binary_kl if matched else _categorical_kl)(student, teacher).mean(1)
    if soft.student_embedding is None and not soft.exclusive and not matched:
        # As published: of the places with an instance the weights stay image-major while the rows become level-major.
        weights = weights[(~real).to(torch.uint8).argsort(stable=True)]
        divergence = divergence[soft.level.where(real, len(omega)).argsort(stable=True)]
    return (weights * divergence).sum() * settings.temperature**2 / count


def _categorical_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)


def _binary_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Of Bernoulli distributions: KL(teacher || student) = p (t - s) + softplus(s) - softplus(t)."""
    return teacher.sigmoid() * (teacher - student) + F.softplus(student) - F.softplus(teacher)


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
    share: Tensor | float
    if bank is None:
        omega = (instances.labels >= 0).to(instances.boxes.dtype).expand(len(student), -1)
        share, whole = 1.0, omega.new_zeros(())
    else:
        levels, omega = discrepancy(student, teacher, instances, bank, settings, strides)
        omega = _applied(omega, instances, settings)
        share, whole = _participating_share(instances, bank), levels.sum()
    imitated = imitated or teacher
    trust = None
    if bank is not None and settings.background_trust == "prototypes":
        trust = background_trust(student, imitated, bank, units)
    foreground, background = _imitation(adapted, imitated, instances, omega, strides[0], settings, trust)
    if units is not None:
        foreground, background = (loss / units.deviations.square() for loss in (foreground, background))
    over_levels = torch.mean if stage == "two_stage" or units is not None else torch.sum
    terms = {
        "global": kappa * settings.global_weight * share * whole,
        "foreground": kappa * settings.foreground_weight * over_levels(foreground),
        "background": kappa * settings.background_weight * over_levels(background),
    }
    if soft is not None:
        terms["soft"] = settings.soft_weight * soft_label_loss(soft, omega, instances, bank, settings)
    return terms, omega


def _imitation(
    adapted: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    omega: Tensor,
    strides: Sequence[float],
    settings: GKDSettings,
    trust: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """L_fg and L_bg of each level [L], without their weights."""
    sums = imitation(adapted, teacher, instances, omega, strides, settings.overlap, settings.box_levels, trust)
    channels = [feature.shape[1] for feature in teacher]
    twice = 2 * (channels[0] if len(set(channels)) == 1 else _on_device_of(sums.foreground, channels))
    foreground = sums.foreground / (twice * parallel.total(sums.foreground_weight)).clamp(min=1)
    background = sums.background / (twice * parallel.total(sums.background_cells)).clamp(min=1)
    return foreground, background


def _on_device_of(like: Tensor, numbers: Sequence[float]) -> Tensor:
    """Numbers [n] beside a tensor; to copy them from the host, it would wait for the device."""
    return torch.cat([like.new_full((1,), number) for number in numbers])


def _participating_share(instances: Instances, bank: PrototypeBank) -> Tensor | float:
    """This process's part of the instances whose class has prototypes."""
    if parallel.world_size() == 1:
        return 1.0
    label = instances.labels.clamp(min=0)
    has_prototypes = bank.class_offsets[label + 1] > bank.class_offsets[label]
    own = (has_prototypes & (instances.labels >= 0)).sum().float()
    return own / parallel.total(own).clamp(min=1)
