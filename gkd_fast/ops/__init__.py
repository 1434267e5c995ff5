"""Fused operators for distilling detectors: checked, differentiable, with a choice of backends."""

from gkd_fast.ops._dispatch import backends, use_backend
from gkd_fast.ops.box_mean_pool import box_mean_pool
from gkd_fast.ops.masked_imitation import ImitationSums, masked_imitation
from gkd_fast.ops.matching_pursuit import matching_pursuit
from gkd_fast.ops.multiscale_roi_align import MultiScaleRoIAlign, multiscale_roi_align
from gkd_fast.ops.pairwise_discrepancy import pairwise_discrepancy
from gkd_fast.ops.prototype_projection import prototype_projection

__all__ = [
    "ImitationSums",
    "MultiScaleRoIAlign",
    "backends",
    "box_mean_pool",
    "masked_imitation",
    "matching_pursuit",
    "multiscale_roi_align",
    "pairwise_discrepancy",
    "prototype_projection",
    "use_backend",
]
