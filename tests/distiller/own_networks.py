"""Networks of nobody's library, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gkd_fast.distiller import Distiller

LAYERS = ["levels.0", "levels.1", "levels.2"]
CLASSES = ("a", "b", "c")


class Network(nn.Module):
    """Levels of their own strides and channels, and a head on each.

    Args:
        channels: of each level.
        strides: of each level.
        run_level: how a level is run.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 16, 16),
        strides: Sequence[int] = (4, 8, 16),
        run_level: Callable[[nn.Module, Tensor], Tensor] = lambda level, x: level(x),
    ) -> None:
        super().__init__()
        pairs = list(zip(channels, strides, strict=True))
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(3, c, 3, s, 1), nn.SiLU()) for c, s in pairs)
        self.heads = nn.ModuleList(nn.Conv2d(c, 3, 1) for c, _ in pairs)
        self.run_level = run_level

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of each level."""
        maps = [self.run_level(level, images) for level in self.levels]
        return [head(found) for head, found in zip(self.heads, maps, strict=True)]


def make_images(side: int = 128, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def make_boxes(side: int = 128, images: int = 2, each: int = 10, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes xyxy in pixels, and labels from 0."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images * each, 2, generator=generator) * side / 2
    far = corner + side / 12 + torch.rand(images * each, 2, generator=generator) * side / 3
    boxes = torch.cat([corner, far], 1)
    labels = torch.arange(images * each) % len(CLASSES)
    return list(boxes.split(each)), list(labels.split(each))


def make_pair(student: nn.Module | None = None, teacher: nn.Module | None = None, **options) -> tuple[nn.Module, ...]:
    """Teacher, student and their distiller, always the same."""
    torch.manual_seed(0)
    teacher = Network((24, 24, 24)) if teacher is None else teacher
    student = Network() if student is None else student
    options = {"example": make_images(), "min_box": 4.0, "refresh_steps": 3, **options}
    return teacher, student, Distiller(teacher, student, CLASSES, LAYERS, **options)


def own_loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([output.square().mean() for output in outputs]).sum()


def train_step(student: nn.Module, distiller: Distiller, side: int = 128, seed: int = 0, **more) -> dict[str, Tensor]:
    """Forward and backward of the student's own loss and the terms."""
    images, (boxes, labels) = make_images(side, seed=seed), make_boxes(side, seed=seed)
    loss = own_loss(student(images))
    terms = distiller(images, more.pop("boxes", boxes), more.pop("labels", labels), **more)
    (loss + sum(terms.values())).backward()
    return terms
