"""How much the two feature spaces trust clean, small, blurred and occluded instances, and planted damage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gkd_fast import ops
from gkd_fast.config import Config
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.data.scenes import CONDITIONS
from gkd_fast.detectors import DetectorAdapter, plain_targets
from gkd_fast.detectors.base import ground_truth_instances
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.methods.gkd.robust import discrepancy
from gkd_fast.training.distilling import embed_ground_truth
from gkd_fast.training.planting import Planting
from gkd_fast.watching import evaluating


@torch.no_grad()
def weights_by_condition(
    student: DetectorAdapter,
    teacher: DetectorAdapter,
    bank: PrototypeBank,
    dataset: PreparedDataset,
    config: Config,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Mean robust weight of the ground-truth instances of each condition of the scenes data.

    Args:
        student: the trained student.
        teacher: frozen.
        bank: the prototypes.
        dataset: scenes, whose targets name each instance's condition.
        config: batch size, workers, treatment of coordinates.
        device: of the networks.

    Returns:
        For each condition ``instances``, their number, and ``weight``, the mean of omega over all levels.
    """
    loader = build_loader(
        dataset, batch_size=config.optim.batch_size, shuffle=False, seed=0, workers=config.data.workers
    )
    batches = list(loader)
    condition = torch.cat([target["condition"] for _, targets in batches for target in targets])
    trained = replace(config.distill, student_statistics="running")
    found = embed_ground_truth(student, teacher, batches, trained, device)
    bank = bank.to(torch.device("cpu"))
    _, omega = ops.pairwise_discrepancy(
        found.student, found.teacher, bank.student, bank.teacher, found.labels, bank.class_offsets
    )
    per_instance = omega.mean(0)
    return {
        name: {
            "instances": int((condition == index).sum()),
            "weight": round(float(per_instance[condition == index].mean()), 4),
        }
        for index, name in enumerate(CONDITIONS)
        if (condition == index).any()
    }


@torch.no_grad()
def planted_weights(
    student: DetectorAdapter,
    teacher: DetectorAdapter,
    bank: PrototypeBank,
    dataset: PreparedDataset,
    config: Config,
    device: torch.device,
) -> dict[str, Any]:
    """How well robust weights tell the instances whose view was damaged (`--teacher-noise`) from the others.

    Args:
        student: the trained student.
        teacher: frozen.
        bank: the prototypes.
        dataset: the training images.
        config: with the kind of damage.
        device: of the networks.

    Returns:
        ``instances`` and ``planted``, their numbers; ``auc``, the probability that a damaged instance weighs less than
        another one, ties counted half; ``weight`` and ``planted_weight``, the means of omega over all levels.
    """
    planting = Planting.of(config.data, config.run.seed)
    assert planting is not None
    loader = build_loader(
        dataset.without_flip(), batch_size=config.optim.batch_size, shuffle=False, seed=0, workers=config.data.workers
    )
    bank, found = bank.to(device), list[tuple[Tensor, Tensor]]()
    with evaluating(student.model), evaluating(teacher.model):
        for images, targets in loader:
            batch = student.batch([image.to(device) for image in images]).tensors
            truth = ground_truth_instances(plain_targets(targets, device))
            shown, planted = planting(batch, truth, [target["image_id"] for target in targets])
            student_maps, teacher_maps = (
                list(net.model.backbone(own).values()) for net, own in ((student, batch), (teacher, shown))
            )
            _, omega = discrepancy(student_maps, teacher_maps, truth, bank, config.distill)
            found.append((omega.mean(0).cpu(), planted.cpu()))
    omega, planted = (torch.cat(part) for part in zip(*found, strict=True))
    return {
        "instances": len(omega),
        "planted": int(planted.sum()),
        "auc": round(area_under_curve(-omega, planted), 4),
        "weight": round(float(omega[~planted].mean()), 4),
        "planted_weight": round(float(omega[planted].mean()), 4),
    }


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """The probability that a positive has a higher score than a negative, ties counted half; nan without one of them.

    Args:
        scores: float [n].
        positive: bool [n].
    """
    negatives, positives = scores[~positive].sort().values, scores[positive]
    below = torch.searchsorted(negatives, positives) + torch.searchsorted(negatives, positives, right=True)
    return float((below.double() / (2 * len(negatives))).mean()) if len(negatives) else math.nan
