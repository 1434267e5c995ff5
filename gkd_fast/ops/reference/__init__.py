"""Every operator in plain torch, on any device: the truth that kernels are held against."""

from gkd_fast.ops.reference.box_mean_pool import box_mean_pool
from gkd_fast.ops.reference.masked_imitation import masked_imitation
from gkd_fast.ops.reference.matching_pursuit import matching_pursuit
from gkd_fast.ops.reference.multiscale_roi_align import multiscale_roi_align
from gkd_fast.ops.reference.pairwise_discrepancy import pairwise_discrepancy
from gkd_fast.ops.reference.prototype_projection import prototype_projection

__all__ = [
    "box_mean_pool",
    "masked_imitation",
    "matching_pursuit",
    "multiscale_roi_align",
    "pairwise_discrepancy",
    "prototype_projection",
]
