"""Global knowledge: prototype generation (PGM) and robust distilling (RDM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.methods.gkd.bank import PrototypeBank
    from gkd_fast.methods.gkd.prototypes import (
        Candidates,
        LabelledBatch,
        candidate_indices,
        collect_candidates,
        embedding_modes,
        generate_bank,
    )
    from gkd_fast.methods.gkd.rings import ClassRings
    from gkd_fast.methods.gkd.robust import (
        Adapters,
        instance_weights,
        robust_distilling,
        robust_weights,
        soft_label_loss,
    )
    from gkd_fast.methods.gkd.settings import PUBLISHED, GKDSettings

__all__ = [
    "PUBLISHED",
    "Adapters",
    "Candidates",
    "ClassRings",
    "GKDSettings",
    "LabelledBatch",
    "PrototypeBank",
    "candidate_indices",
    "collect_candidates",
    "embedding_modes",
    "generate_bank",
    "instance_weights",
    "robust_distilling",
    "robust_weights",
    "soft_label_loss",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "bank": "PrototypeBank",
        "prototypes": "Candidates LabelledBatch candidate_indices collect_candidates embedding_modes generate_bank",
        "rings": "ClassRings",
        "robust": "Adapters instance_weights robust_distilling robust_weights soft_label_loss",
        "settings": "PUBLISHED GKDSettings",
    },
)
