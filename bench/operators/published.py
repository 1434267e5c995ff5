"""The published algorithm, restated: box by box, level by level, as a baseline.

Signatures, conventions and results are those of `gkd_fast.ops`; the way there is the paper's published one:
every box is cropped, averaged and appended, weights are painted into double masks of all channels, and the
matching pursuit builds every candidate's residual. Boxes are finite: what NaN means is left to the operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import PrototypeBank, soft_label_loss


def box_mean_pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    strides: Sequence[int],
    *,
    negative: str = "clamp",
) -> Tensor:
    """Embeddings [L,B,C]: one crop and one mean for each box and level."""
    levels = []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[-2:]
        embeddings = []
        for box, image in zip(boxes.tolist(), image_index.tolist(), strict=True):
            x1, y1, x2, y2 = (abs(c) if negative == "mirror" else c for c in box)
            top, bottom = _inclusive_range(y1, y2, stride, height)
            left, right = _inclusive_range(x1, x2, stride, width)
            crop = feature[image, :, top : bottom + 1, left : right + 1]
            embeddings.append(crop.mean(dim=(1, 2)))
        levels.append(torch.stack(embeddings))
    return torch.stack(levels)


def _inclusive_range(lower: float, upper: float, stride: int, size: int) -> tuple[int, int]:
    first = min(max(math.floor(lower / stride), 0), size - 1)
    last = min(max(math.floor(upper / stride), 0), size - 1)
    return first, max(first, last)


def prototype_projection(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine [L,B,P]: one row of cosines for each embedding."""
    levels = []
    for level_embeddings, level_prototypes in zip(embeddings, prototypes, strict=True):
        rows = [F.cosine_similarity(e[None], level_prototypes, dim=1) for e in level_embeddings]
        levels.append(torch.stack(rows))
    return torch.stack(levels)


def pairwise_discrepancy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    class_offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss [L] and omega [L,B]: both rows of cosines for each instance, weighted and appended."""
    offsets = class_offsets.tolist()
    losses, omegas = [], []
    for level in range(student.shape[0]):
        level_omegas, student_rows, teacher_rows = [], [], []
        for i, label in enumerate(labels.tolist()):
            if label < 0 or offsets[label] == offsets[label + 1]:
                level_omegas.append(student.new_tensor(0.0 if label < 0 else 1.0))
                continue
            student_row = F.cosine_similarity(student[level, i][None], student_prototypes[level], dim=1)
            teacher_row = F.cosine_similarity(teacher[level, i][None], teacher_prototypes[level], dim=1)
            own = slice(offsets[label], offsets[label + 1])
            omega = _robust_weight(student_row[own], teacher_row[own])
            level_omegas.append(omega)
            student_rows.append(omega * student_row)
            teacher_rows.append(omega * teacher_row)
        omegas.append(torch.stack(level_omegas))
        if student_rows:
            losses.append(F.smooth_l1_loss(torch.stack(student_rows), torch.stack(teacher_rows)))
        else:
            losses.append(student[level].sum() * 0.0)
    return torch.stack(losses), torch.stack(omegas)


def _robust_weight(student_cosines: Tensor, teacher_cosines: Tensor) -> Tensor:
    """1 - |max cos in the student's space - max cos in the teacher's|, over the prototypes of one class."""
    return 1.0 - (student_cosines.max() - teacher_cosines.max()).abs().detach()


def masked_imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    strides: Sequence[int],
    *,
    overlap: str = "max",
    base_size: float = 56.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Foreground, background, foreground weight, background cells [L]; masks are double [N,C,H,W]."""
    sums = []
    for level, (s, t, stride) in enumerate(zip(student, teacher, strides, strict=True)):
        mask = torch.zeros(s.shape, dtype=torch.float64, device=s.device)
        for i, (box, image) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
            if _imitation_level(box, len(student), base_size) == level:
                _paint(mask[image], box, stride, omega[level, i].item(), overlap)
        background = 1.0 - (mask > 0).double()
        square = (s - t) ** 2
        channels = s.shape[1]
        sums.append(
            (
                (mask * square).sum(),
                (background * square).sum(),
                mask.sum() / channels,
                background.sum() / channels,
            )
        )
    foreground, background, weight, cells = (torch.stack(level) for level in zip(*sums, strict=True))
    return foreground, background, weight, cells


def _imitation_level(box: Sequence[float], levels: int, base_size: float) -> int:
    x1, y1, x2, y2 = box
    size = math.sqrt(max(x2 - x1 + 1.0, 0.0) * max(y2 - y1 + 1.0, 0.0)) / base_size
    return min(max(math.floor(math.log2(size + 1e-6)), 0), levels - 1)


def _paint(mask: Tensor, box: Sequence[float], stride: int, omega: float, overlap: str) -> None:
    """Paint omega into mask [C,H,W]; a box without a cell of its own meets the one that holds its corner."""
    _, height, width = mask.shape
    left, top, right, bottom = (int(max(c, 0.0) / stride) for c in box)
    right, bottom = min(right, width), min(bottom, height)
    single = left >= right or top >= bottom
    if single:
        left, top = min(left, width - 1), min(top, height - 1)
        right, bottom = left + 1, top + 1
    area = mask[:, top:bottom, left:right]
    if single or overlap == "max":
        area.clamp_(min=omega)
    else:
        area.fill_(omega)


def robust_distilling(
    student: Sequence[Tensor],
    adapted: Sequence[Tensor],
    teacher: Sequence[Tensor],
    instances: Instances,
    soft: SoftPairs,
    bank: PrototypeBank,
    config: Settings,
    *,
    stage: str,
    kappa: float,
    strides: object = None,
    units: None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of `gkd_fast.methods.gkd.robust_distilling`, from the loops above.

    One-stage soft labels are rows of logits without a loop, here as there. The strides are those of the bank.
    """
    boxes, image_index = instances.boxes, instances.image_index
    embedded = [
        box_mean_pool(maps, boxes, image_index, bank.strides, negative=config.negative) for maps in (student, teacher)
    ]
    discrepancy, omega = pairwise_discrepancy(
        *embedded, bank.student, bank.teacher, instances.labels, bank.class_offsets
    )
    foreground, background, weight, cells = masked_imitation(
        adapted, teacher, boxes, image_index, omega, bank.strides, overlap=config.overlap
    )
    channels = teacher[0].shape[1]
    over_levels = torch.mean if stage == "two_stage" else torch.sum
    if stage == "two_stage":
        soft_term = _soft_label_loss(soft, instances.labels, bank, config.temperature)
    else:
        soft_term = soft_label_loss(soft, omega.float(), instances, bank, config)
    terms = {
        "global": kappa * config.global_weight * discrepancy.sum(),
        "foreground": kappa
        * config.foreground_weight
        * over_levels(foreground / (2 * channels * weight).clamp(min=1.0)),
        "background": kappa
        * config.background_weight
        * over_levels(background / (2 * channels * cells).clamp(min=1.0)),
        "soft": config.soft_weight * soft_term,
    }
    return terms, omega


def _soft_label_loss(soft: SoftPairs, labels: Tensor, bank: PrototypeBank, temperature: float) -> Tensor:
    """Mean over the positives of omega T^2 mean_c KL(teacher || student); omega from the RoI embeddings."""
    if soft.student_embedding is None or soft.teacher_embedding is None:
        raise ValueError("soft: expected the RoI embeddings of a two-stage detector, got None")
    offsets = bank.class_offsets.tolist()
    losses = []
    for i, (instance, level) in enumerate(zip(soft.instance.tolist(), soft.level.tolist(), strict=True)):
        label = int(labels[instance])
        own = slice(offsets[label], offsets[label + 1])
        omega = _robust_weight(
            F.cosine_similarity(soft.student_embedding[i][None], bank.student[level, own], dim=1),
            F.cosine_similarity(soft.teacher_embedding[i][None], bank.teacher[level, own], dim=1),
        )
        student = F.log_softmax(soft.student[i] / temperature, dim=0)
        teacher = F.softmax(soft.teacher[i] / temperature, dim=0)
        losses.append(omega * temperature**2 * F.kl_div(student, teacher, reduction="none").mean())
    return torch.stack(losses).mean()


def matching_pursuit(
    student: Tensor,
    teacher: Tensor,
    count: Tensor,
    *,
    picks: int = 10,
    alpha: float = 10.0,
    repeat: bool = False,
    candidates: Tensor | None = None,
) -> Tensor:
    """Picks [G,picks], one problem after the other; a pick holds the residuals [k,n,D] of all candidates."""
    if candidates is None:
        candidates = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    problems = zip(student, teacher, candidates, count.tolist(), strict=True)
    return torch.stack(
        [_pursue(a[:n].float(), b[:n].float(), may[:n], picks, alpha, repeat) for a, b, may, n in problems]
    )


def _pursue(a: Tensor, b: Tensor, candidates: Tensor, picks: int, alpha: float, repeat: bool) -> Tensor:
    rows = candidates.argwhere()[:, 0].tolist()
    residual_a, residual_b = a, b
    chosen: list[int] = []
    while rows and len(chosen) < picks:
        left_a, left_b, cost = _candidate_residuals(a[rows], b[rows], residual_a, residual_b, alpha)
        best = int(cost.argmin())
        residual_a, residual_b = left_a[best], left_b[best]
        chosen.append(rows[best])
        if not repeat:
            del rows[best]
    return torch.tensor(chosen + [-1] * (picks - len(chosen)), device=a.device)


def _candidate_residuals(
    a: Tensor, b: Tensor, residual_a: Tensor, residual_b: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both spaces' residuals [k,n,D] after each of the k candidates, and what each costs [k]."""
    u, v = a @ residual_a.T, b @ residual_b.T
    weight_a = ((1.0 + alpha) * u + alpha * v) / (1.0 + 2.0 * alpha)
    weight_b = ((1.0 + alpha) * v + alpha * u) / (1.0 + 2.0 * alpha)
    left_a = residual_a[None] - weight_a[:, :, None] * a[:, None, :]
    left_b = residual_b[None] - weight_b[:, :, None] * b[:, None, :]
    cost = left_a.square().sum(dim=(1, 2)) + left_b.square().sum(dim=(1, 2))
    return left_a, left_b, cost + alpha * (weight_a - weight_b).square().sum(dim=1)
