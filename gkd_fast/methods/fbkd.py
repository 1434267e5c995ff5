"""FBKD: attention-guided and non-local distillation (Zhang and Ma, ICLR 2021, openreview uKhGRvM8QNH)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step
from gkd_fast.methods.settings import FBKDSettings
from gkd_fast.methods.units import channel_factor, image_factor, pixel_factor


class FBKD(nn.Module):
    """Features under the attention of both networks, the attention itself, and relations between cells.

    With S the student's map behind a 1x1 convolution, G^s = mean_c |F| [H,W] and G^c = mean_hw |F| [C]:

    attention   |G^s(S) - G^s(T)|_2 + |G^c(S) - G^c(T)|_2                             (paper, L_AT)
    masked      (sum (S - T)^2 M^s M^c)^(1/2), M^s = H W softmax((G^s(S) + G^s(T)) / T), M^c = C softmax(...) (L_AM)
    relation    |h(r_S(S)) - r_T(T)|_2, r: non-local blocks of both networks, h: 1x1 convolution (L_NLD)

    each over the whole batch, weighted, and summed over levels. No gradient flows through the masks, as in the
    published code.
    """

    parts = ("attention", "masked", "relation")

    def __init__(self, setup: Setup, config: FBKDSettings) -> None:
        super().__init__()
        levels = setup.channels(setup.own_levels)
        self.adapters = nn.ModuleList(nn.Conv2d(student, teacher, 1) for student, teacher in levels)
        self.student_relation = nn.ModuleList(NonLocal(teacher) for _, teacher in levels)
        self.teacher_relation = nn.ModuleList(NonLocal(teacher) for _, teacher in levels)
        self.relation_adapters = nn.ModuleList(nn.Conv2d(teacher, teacher, 1) for _, teacher in levels)
        self.temperature = setup.of(config.fbkd_temperature)
        self.weights = {
            "attention": setup.of(config.fbkd_attention_weight),
            "masked": setup.of(config.fbkd_masked_weight),
            "relation": setup.of(config.fbkd_relation_weight),
        }

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``attention``, ``masked`` and ``relation``."""
        levels = []
        for index, (adapter, teacher) in enumerate(zip(self.adapters, step.teacher, strict=False)):
            student = adapter(step.student[index])
            relation = self.relation_adapters[index](self.student_relation[index](student))
            cells, depths, masked = attention_guided(student, teacher, self.temperature)
            related = torch.linalg.vector_norm(relation - self.teacher_relation[index](teacher))
            images = image_factor(step.units, step.images)
            pixels = images * pixel_factor(step.units, step.images)
            channels = channel_factor(step.units, teacher)
            # Norms grow with the square root of what they sum over.
            attention = cells * pixels**0.5 + depths * (images * channels) ** 0.5
            whole = (pixels * channels) ** 0.5
            levels.append(torch.stack([attention, masked * whole, related * whole]))
        sums = torch.stack(levels).sum(0)
        return {name: weight * value for (name, weight), value in zip(self.weights.items(), sums, strict=True)}


def attention_guided(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """L_AT of one level, of cells and of channels, and L_AM.

    Args:
        student, teacher: [N,C,H,W].
        temperature: of both masks.
    """
    images, channels, height, width = teacher.shape
    cells = [feature.abs().mean(1).flatten(1) for feature in (student, teacher)]
    depths = [feature.abs().mean((2, 3)) for feature in (student, teacher)]
    differences = torch.linalg.vector_norm(cells[0] - cells[1]), torch.linalg.vector_norm(depths[0] - depths[1])
    mask_s = ((cells[0] + cells[1]).detach() / temperature).softmax(1) * (height * width)
    mask_c = ((depths[0] + depths[1]).detach() / temperature).softmax(1) * channels
    root = (mask_s.view(images, 1, height, width) * mask_c[:, :, None, None]).sqrt()
    return *differences, torch.linalg.vector_norm(root * (student - teacher))


class NonLocal(nn.Module):
    """r(F)_i = F_i + W 1/(HW) sum_j (theta F_i . phi F_j) g F_j, the identity at first (W = 0).

    The dot product is linear, so that sum_j phi F_j (g F_j)^T comes first: no matrix of cells times cells is needed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta, self.phi, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]."""
        height, width = feature.shape[2:]
        pairs = self.phi(feature).flatten(2) @ self.value(feature).flatten(2).transpose(1, 2) / (height * width)
        related = pairs.transpose(1, 2) @ self.theta(feature).flatten(2)
        return feature + self.out(related.unflatten(2, (height, width)))
