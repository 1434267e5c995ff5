"""How much the two feature spaces trust clean, small, blurred and occluded instances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gkd_fast import ops
from gkd_fast.config import Config
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.data.scenes import CONDITIONS
from gkd_fast.detectors import DetectorAdapter
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.training.distilling import embed_ground_truth


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
