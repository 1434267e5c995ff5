"""The method: prototype generation (PGM) and robust distilling (RDM)."""

from gkd_fast.methods.gkd.bank import PrototypeBank
from gkd_fast.methods.gkd.prototypes import Candidates, candidate_indices, collect_candidates, generate_bank
from gkd_fast.methods.gkd.robust import Adapters, robust_distilling, robust_weights, soft_label_loss

__all__ = [
    "Adapters",
    "Candidates",
    "PrototypeBank",
    "candidate_indices",
    "collect_candidates",
    "generate_bank",
    "robust_distilling",
    "robust_weights",
    "soft_label_loss",
]
