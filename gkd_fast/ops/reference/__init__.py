"""Every operator in plain torch, on any device: the truth that kernels are held against."""

from gkd_fast.ops.reference.anchor_losses import sigmoid_focal_loss, smooth_l1_loss
from gkd_fast.ops.reference.background_trust import background_trust, channel_means
from gkd_fast.ops.reference.batched_nms import batched_nms
from gkd_fast.ops.reference.box_mean_pool import box_mean_pool
from gkd_fast.ops.reference.encode_boxes import encode_boxes
from gkd_fast.ops.reference.loss_terms import loss_terms
from gkd_fast.ops.reference.masked_imitation import masked_imitation
from gkd_fast.ops.reference.match_anchors import match_anchors
from gkd_fast.ops.reference.matching_pursuit import matching_pursuit
from gkd_fast.ops.reference.multiscale_roi_align import multiscale_roi_align
from gkd_fast.ops.reference.pairwise_discrepancy import pairwise_discrepancy
from gkd_fast.ops.reference.prototype_projection import prototype_projection
from gkd_fast.ops.reference.robust_weights import robust_weights
from gkd_fast.ops.reference.sample_balanced import sample_balanced
from gkd_fast.ops.reference.soft_label_divergence import soft_label_divergence

__all__ = [
    "background_trust",
    "batched_nms",
    "box_mean_pool",
    "channel_means",
    "encode_boxes",
    "loss_terms",
    "masked_imitation",
    "match_anchors",
    "matching_pursuit",
    "multiscale_roi_align",
    "pairwise_discrepancy",
    "prototype_projection",
    "robust_weights",
    "sample_balanced",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "soft_label_divergence",
]
