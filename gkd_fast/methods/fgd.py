"""FGD: focal and global knowledge distillation (Yang et al., CVPR 2022, arXiv 2111.11837)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step, aligned, attention, paint
from gkd_fast.methods.settings import FGDSettings
from gkd_fast.methods.units import channel_factor, pixel_factor


class FGD(nn.Module):
    """Focal: features under the teacher's attention, objects and background apart. Global: GcBlocks compared.

    A^S, A^C: attention of cells and channels; M_ij = max over boxes w_r / (H_r W_r), B_ij = 1 / N_bg outside of boxes

    foreground  alpha / N sum M A^S(T) A^C(T) (T - S)^2         background  beta / N sum B A^S(T) A^C(T) (T - S)^2
    attention   gamma / N (sum |A^S(T) - A^S(S)| + sum |A^C(T) - A^C(S)|)
    global      lambda / N sum (R(T) - R(S))^2

    summed over levels. A box covers rows floor(y1/s) to ceil(y2/s), both inclusive, on every level, and columns
    likewise; H_r, W_r count them. w_r is 1 or the robust weight. R has weights of its own in each network, both
    trained. A 1x1 convolution precedes where the channels differ.
    """

    parts = ("foreground", "background", "attention", "global")

    def __init__(self, setup: Setup, config: FGDSettings) -> None:
        super().__init__()
        teacher_channels = setup.teacher_channels[: setup.own_levels]
        self.align = aligned(setup, setup.own_levels)
        self.student_context = nn.ModuleList(map(GlobalContext, teacher_channels))
        self.teacher_context = nn.ModuleList(map(GlobalContext, teacher_channels))
        self.temperature = config.fgd_temperature
        self.weights = {
            "foreground": setup.of(config.fgd_foreground_weight),
            "background": setup.of(config.fgd_background_weight),
            "attention": setup.of(config.fgd_attention_weight),
            "global": setup.of(config.fgd_global_weight),
        }

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``foreground``, ``background``, ``attention`` and ``global``."""
        levels = []
        for index, (align, teacher) in enumerate(zip(self.align, step.teacher, strict=False)):
            student = align(step.student[index])
            foreground, background = box_masks(step, index)
            relations = self.student_context[index](student), self.teacher_context[index](teacher)
            channels, cells = channel_factor(step.units, teacher), pixel_factor(step.units, step.images)
            focal = self._focal(student, teacher, foreground, background)
            levels.append(
                torch.stack(
                    [
                        focal[0] * channels,
                        focal[1] * channels,
                        focal[2] * cells + focal[3] * channels,
                        (relations[0] - relations[1]).square().sum() * channels * cells,
                    ]
                )
            )
        sums = torch.stack(levels).sum(0) / len(step.teacher[0])
        return {name: weight * value for (name, weight), value in zip(self.weights.items(), sums, strict=True)}

    def _focal(
        self, student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells_s, channels_s = attention(student, self.temperature)
        cells_t, channels_t = attention(teacher, self.temperature)
        square = cells_t * torch.einsum("nchw,nc->nhw", (student - teacher).square(), channels_t)
        differences = (cells_s - cells_t).abs().sum(), (channels_s - channels_t).abs().sum()
        return (foreground * square).sum(), (background * square).sum(), *differences


def box_masks(step: Step, level: int) -> tuple[Tensor, Tensor]:
    """M and B of one level, [N,H,W] each; B of an image sums to 1 unless boxes cover all of it."""
    images, _, height, width = step.student[level].shape
    boxes = step.truth.boxes.clamp(min=0) / step.strides[level]
    left, top = boxes[:, :2].floor().unbind(1)
    right, bottom = boxes[:, 2:].ceil().unbind(1)
    y, x = (torch.arange(size, device=boxes.device) for size in (height, width))
    rows = (y >= top[:, None]) & (y <= bottom[:, None])
    columns = (x >= left[:, None]) & (x <= right[:, None])
    covered = rows[:, :, None] & columns[:, None, :]
    area = (bottom - top + 1) * (right - left + 1)
    image_index = step.truth.image_index
    foreground = paint(covered, step.weights[level] / area, image_index, images)
    outside = 1 - paint(covered, (step.truth.labels >= 0).to(area.dtype), image_index, images)
    return foreground, outside / outside.sum((1, 2), keepdim=True).clamp(min=1)


class GlobalContext(nn.Module):
    """GcBlock: R(F) = F + W_2 ReLU(LN(W_1 sum_j softmax_j(W_k F_j) F_j)), the identity at first (W_2 = 0)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, 1, 1)
        self.reduce = nn.Linear(channels, max(channels // 2, 1))
        self.norm = nn.LayerNorm(max(channels // 2, 1))
        self.expand = nn.Linear(max(channels // 2, 1), channels)
        nn.init.kaiming_normal_(self.key.weight)
        for parameter in (self.key.bias, self.expand.weight, self.expand.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, feature: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]."""
        share = self.key(feature).flatten(1).softmax(1)
        context = torch.einsum("ncp,np->nc", feature.flatten(2), share)
        return feature + self.expand(F.relu(self.norm(self.reduce(context))))[:, :, None, None]
