"""The method: prototype generation (PGM) and robust distilling (RDM)."""

from gkd_fast.distill.bank import PrototypeBank
from gkd_fast.distill.distiller import Distiller
from gkd_fast.distill.prototypes import Candidates, candidate_indices, collect_candidates, generate_bank
from gkd_fast.distill.robust import Adapters, robust_distilling, robust_weights, soft_label_loss

__all__ = [
    "Adapters",
    "Candidates",
    "Distiller",
    "PrototypeBank",
    "candidate_indices",
    "collect_candidates",
    "generate_bank",
    "robust_distilling",
    "robust_weights",
    "soft_label_loss",
]
