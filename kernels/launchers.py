"""The raw operators that Triton runs: imported when the first of them is called for."""

import torch

from gkd_fast.kernels.background_trust import background_trust
from gkd_fast.kernels.channel_means import channel_means
from gkd_fast.kernels.loss_terms import loss_terms, loss_terms_backward
from gkd_fast.kernels.masked_imitation import masked_imitation, masked_imitation_backward
from gkd_fast.kernels.pairwise_discrepancy import pairwise_discrepancy, pairwise_discrepancy_backward
from gkd_fast.kernels.prototype_projection import prototype_projection, prototype_projection_backward
from gkd_fast.kernels.robust_weights import robust_weights
from gkd_fast.kernels.soft_label_divergence import soft_label_divergence, soft_label_divergence_backward

LAUNCHERS = {
    launcher.__name__: launcher
    for launcher in (
        prototype_projection,
        prototype_projection_backward,
        pairwise_discrepancy,
        pairwise_discrepancy_backward,
        masked_imitation,
        masked_imitation_backward,
        robust_weights,
        soft_label_divergence,
        soft_label_divergence_backward,
        channel_means,
        background_trust,
        loss_terms,
        loss_terms_backward,
    )
}

_LIBRARY = torch.library.Library("gkd_fast", "IMPL")
for _name, _launcher in LAUNCHERS.items():
    _LIBRARY.impl(_name, _launcher, "CUDA")
