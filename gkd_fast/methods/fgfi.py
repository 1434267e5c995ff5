"""FGFI: fine-grained feature imitation near objects (Wang et al., CVPR 2019, arXiv 1906.03609)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, near_zero_adapters, paint
from gkd_fast.methods.settings import FGFISettings
from gkd_fast.methods.units import channel_factor
from gkd_fast.ops.reference.masked_imitation import imitation_level
from gkd_fast.pyramids import BASE_SIZE


class FGFI(nn.Module):
    """Imitation at cells with an anchor whose IoU with a box exceeds psi times the largest IoU of that box.

    L = lambda / (2 N_p) sum_l sum_ij sum_c I_ij (g_l(S)_ijc - T_ijc)^2,   N_p = sum_l sum_ij I_ij

    The paper has one map; on a pyramid a box marks cells of the level of its size alone, as DeFeat's authors have it
    in their comparison. I is the largest weight of the boxes that mark a cell. g_l: 3x3 convolutions.
    """

    parts = ("imitation",)

    def __init__(self, setup: Setup, config: FGFISettings) -> None:
        super().__init__()
        self.adapters = near_zero_adapters(setup, setup.levels)
        self.weight = config.fgfi_weight
        self.threshold = config.fgfi_threshold

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term ``imitation``."""
        level = imitation_level(step.truth.boxes, len(step.student), BASE_SIZE)
        assert step.anchors is not None
        anchors = step.anchors()
        sums = []
        for index, (adapter, student, teacher) in enumerate(
            zip(self.adapters, step.student, step.teacher, strict=True)
        ):
            images, _, height, width = student.shape
            near = near_anchors(anchors[index], step.truth.boxes, height, width, self.threshold)
            near = near & (level == index)[:, None, None]
            mask = paint(near, step.weights[index], step.truth.image_index, images)
            square = (adapter(student) - teacher).square().sum(1) * channel_factor(step.units, teacher)
            sums.append(torch.stack([(mask * square).sum(), mask.sum()]))
        imitation, cells = torch.stack(sums).sum(0)
        return {"imitation": self.weight * imitation / (2 * cells).clamp(min=1)}


def near_anchors(anchors: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """The cells near each box.

    Args:
        anchors: [H*W*A,4], the A anchors of a cell in a row.
        boxes: [B,4].
        height, width: of the map.
        threshold: fraction of a box's largest IoU.

    Returns:
        bool [B,H,W].
    """
    from torchvision.ops import box_iou  # takes seconds to import, which other methods need not wait for

    iou = box_iou(boxes, anchors)
    near = iou > threshold * iou.amax(1, keepdim=True)
    return near.view(len(boxes), height, width, len(anchors) // (height * width)).any(-1)
