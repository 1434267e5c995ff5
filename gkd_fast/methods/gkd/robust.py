"""Robust distilling module (RDM): global knowledge, and local knowledge weighted by its discrepancy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast import ops, parallel
from gkd_fast.config import DistillConfig
from gkd_fast.detectors import Instances, SoftPairs
from gkd_fast.methods.gkd.bank import PrototypeBank
from gkd_fast.ops.reference.masked_imitation import imitation_level

_BASE_SIZE = 56.0  # pixels; the default of ops.masked_imitation


class Adapters(nn.Module):
    """One 1x1 convolution per level from the student's to the teacher's channels, with an optional ReLU."""

    def __init__(self, student_channels: int, teacher_channels: int, levels: int, *, relu: bool = False) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(student_channels, teacher_channels, 1) for _ in range(levels))
        self.relu = relu

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """L maps [N,C_S,H,W] -> L maps [N,C_T,H,W]."""
        adapted = [conv(feature) for conv, feature in zip(self.levels, features, strict=True)]
        return [F.relu(feature) for feature in adapted] if self.relu else adapted


def robust_weights(student: Tensor, teacher: Tensor, level: Tensor, labels: Tensor, bank: PrototypeBank) -> Tensor:
    """omega of embeddings that each belong to one level (paper, robust distilling).

    omega = 1 - |max_m cos(f_S, p_S,m) - max_m cos(f_T, p_T,m)| over the prototypes of the same class.

    Args:
        student, teacher: [S,C_S], [S,C_T].
        level: int64 [S].
        labels: int64 [S], class from 0.
        bank: on the same device.

    Returns:
        [S], without gradient; 1 for a class without prototypes.
    """
    first, last = bank.class_offsets[labels], bank.class_offsets[labels + 1]
    index = first[:, None] + torch.arange(bank.most, device=labels.device)
    inside = index < last[:, None]
    index = index.clamp(max=bank.student.shape[1] - 1)

    def nearest(embedding: Tensor, prototypes: Tensor) -> Tensor:
        cosine = F.cosine_similarity(embedding.detach()[:, None], prototypes[level[:, None], index], dim=-1)
        return cosine.masked_fill(~inside, -1).amax(1)

    discrepancy = nearest(student, bank.student) - nearest(teacher, bank.teacher)
    return torch.where(inside.any(1), 1 - discrepancy.abs(), 1.0)


def instance_weights(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    bank: PrototypeBank,
    config: DistillConfig,
) -> Tensor:
    """omega of instances on every level, from the mean of the cells under their boxes.

    Args:
        student, teacher: L maps [N,C_S,H_l,W_l], [N,C_T,H_l,W_l].
        instances: B instances.
        bank: on the same device.
        config: negative, positive_weights.

    Returns:
        [L,B], without gradient.
    """
    with torch.no_grad():
        _, omega = _global_knowledge(student, teacher, instances, bank, config)
    return omega.clamp(min=0) if config.positive_weights else omega


def _global_knowledge(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    bank: PrototypeBank,
    config: DistillConfig,
) -> tuple[Tensor, Tensor]:
    """The discrepancy of each level [L], and omega [L,B]."""
    embedded = [
        ops.box_mean_pool(maps, instances.boxes, instances.image_index, bank.strides, negative=config.negative)
        for maps in (student, teacher)
    ]
    return ops.pairwise_discrepancy(*embedded, bank.student, bank.teacher, instances.labels, bank.class_offsets)


def soft_label_loss(
    soft: SoftPairs, omega: Tensor, instances: Instances, bank: PrototypeBank, config: DistillConfig
) -> Tensor:
    """mean_i omega_i T^2 mean_c KL(teacher || student) over the places of an instance, at temperature T.

    The losses of processes that train together add up to the mean over all of them.

    Args:
        soft: logits of both networks; a two-stage detector's, and those of the published one-stage loss, all with an
            instance.
        omega: [L,B] robust weights of the instances.
        instances: for their classes.
        bank: for the weights of a two-stage detector, which come from the RoI features.
        config: temperature, one_stage_soft.
    """
    count = parallel.total((soft.instance >= 0).sum()).clamp(min=1)
    if soft.student.shape[0] == 0 or len(instances.boxes) == 0:
        return soft.student.sum() * 0
    student, teacher = soft.student.float() / config.temperature, soft.teacher.float() / config.temperature
    if soft.student_embedding is not None and soft.teacher_embedding is not None:
        labels = instances.labels[soft.instance]
        weights = robust_weights(soft.student_embedding, soft.teacher_embedding, soft.level, labels, bank)
        divergence = _categorical_kl(student, teacher)
    else:
        own_level = imitation_level(instances.boxes, len(omega), _BASE_SIZE)
        instance = soft.instance.clamp(min=0)
        weights = omega[own_level[instance], instance].where(soft.instance >= 0, 0)
        if config.one_stage_soft == "matched":
            divergence = _binary_kl(student, teacher)
        else:  # the weights stay image-major while the rows become level-major
            divergence = _categorical_kl(student, teacher)[soft.level.argsort(stable=True)]
    if config.positive_weights:
        weights = weights.clamp(min=0)
    return (weights * config.temperature**2 * divergence.mean(1)).sum() / count


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
    bank: PrototypeBank,
    config: DistillConfig,
    *,
    stage: str,
    kappa: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """All terms of the robust distilling module.

    Args:
        student: L raw student maps [N,C_S,H_l,W_l].
        adapted: the same through the adapters, [N,C_T,H_l,W_l].
        teacher: L teacher maps [N,C_T,H_l,W_l].
        instances: B instances.
        soft: logits for the soft-label loss, or None to leave it out.
        bank: prototypes.
        config: weights and variants of the terms.
        stage: ``two_stage`` (feature losses: mean over levels) or ``one_stage`` (sum).
        kappa: attenuation, 1 - epoch / epochs.

    Returns:
        The weighted terms ``global``, ``foreground``, ``background``, ``soft`` (float32 scalars, to be added
        up, over all processes that train together), and the robust weights omega [L,B].
    """
    boxes, image_index = instances.boxes, instances.image_index
    discrepancy, omega = _global_knowledge(student, teacher, instances, bank, config)
    sums = ops.masked_imitation(adapted, teacher, boxes, image_index, omega, bank.strides, overlap=config.overlap)
    channels = teacher[0].shape[1]
    foreground = sums.foreground / (2 * channels * parallel.total(sums.foreground_weight)).clamp(min=1)
    background = sums.background / (2 * channels * parallel.total(sums.background_cells)).clamp(min=1)
    over_levels = torch.mean if stage == "two_stage" else torch.sum
    terms = {
        "global": kappa * config.global_weight * _participating_share(instances, bank) * discrepancy.sum(),
        "foreground": kappa * config.foreground_weight * over_levels(foreground),
        "background": kappa * config.background_weight * over_levels(background),
    }
    if soft is not None:
        terms["soft"] = config.soft_weight * soft_label_loss(soft, omega, instances, bank, config)
    return terms, omega


def _participating_share(instances: Instances, bank: PrototypeBank) -> Tensor | float:
    """This process's part of the instances whose class has prototypes."""
    if parallel.world_size() == 1:
        return 1.0
    label = instances.labels.clamp(min=0)
    has_prototypes = bank.class_offsets[label + 1] > bank.class_offsets[label]
    own = (has_prototypes & (instances.labels >= 0)).sum().float()
    return own / parallel.total(own).clamp(min=1)
