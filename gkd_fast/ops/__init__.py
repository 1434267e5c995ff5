"""Fused operators for distilling detectors: checked, differentiable, with a choice of backends."""

from gkd_fast.ops._dispatch import backends, use_backend
from gkd_fast.ops.anchor_losses import sigmoid_focal_loss, smooth_l1_loss
from gkd_fast.ops.background_trust import background_trust, channel_means
from gkd_fast.ops.batched_nms import batched_nms
from gkd_fast.ops.box_mean_pool import box_mean_pool, box_mean_pools
from gkd_fast.ops.encode_boxes import encode_boxes
from gkd_fast.ops.loss_terms import loss_terms
from gkd_fast.ops.masked_imitation import ImitationSums, imitation_sums, masked_imitation
from gkd_fast.ops.match_anchors import match_anchors
from gkd_fast.ops.matching_pursuit import matching_pursuit
from gkd_fast.ops.multiscale_roi_align import MultiScaleRoIAlign, multiscale_roi_align
from gkd_fast.ops.pairwise_discrepancy import pairwise_discrepancy
from gkd_fast.ops.prototype_projection import prototype_projection
from gkd_fast.ops.robust_weights import robust_weights
from gkd_fast.ops.sample_balanced import sample_balanced
from gkd_fast.ops.soft_label_divergence import soft_label_divergence

__all__ = [
    "ImitationSums",
    "MultiScaleRoIAlign",
    "backends",
    "background_trust",
    "batched_nms",
    "box_mean_pool",
    "box_mean_pools",
    "channel_means",
    "encode_boxes",
    "imitation_sums",
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
    "use_backend",
]
