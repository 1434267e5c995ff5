"""A detector of one's own: class heat maps on three levels; any module that gives maps [N,C,H,W] will do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

import cells
import gkd_fast


class CentrePoints(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.LazyConv2d(width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(4)]
        self.stem, self.levels = blocks[0], nn.ModuleList(blocks[1:])  # levels of strides 4, 8, 16
        self.head = nn.LazyConv2d(classes, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = list(accumulate([self.stem(images), *self.levels], lambda found, level: level(found)))
        return [self.head(found) for found in maps[1:]]


def loss(network: nn.Module, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    total = images.new_zeros(())
    for logits in network(images):
        stride, truth = images.shape[-1] / logits.shape[-1], torch.zeros_like(logits)
        for image, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
            x, y = ((own[:, :2] + own[:, 2:]) / 2 / stride).long().clamp(max=logits.shape[-1] - 1).unbind(1)
            truth[image, classes, y, x] = 1
        total = total + nn.functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=torch.tensor(20.0))
    return total


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    options = cells.options(__doc__).parse_args(arguments)
    data, history = cells.load(options), []
    teacher, student = (CentrePoints(width, len(data.classes)) for width in (32, 8))
    student(data.samples[0][0][None])  # sizes its layers
    cells.train(teacher, loss, data.batches(options.steps))
    # ---- distilling: the student's own loop, and four lines
    settings = {"example": data.samples[0][0][None], "method": options.method, "min_box": 8}
    distiller = gkd_fast.Distiller(teacher, student, data.classes, ["levels.0", "levels.1", "levels.2"], **settings)
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], 1e-3)
    for step, (images, boxes, labels) in enumerate(data.batches(options.steps)):
        own = loss(student, images, boxes, labels)
        terms = distiller(images, boxes, labels)
        optimizer.zero_grad()
        (own + sum(terms.values())).backward()
        optimizer.step()
        # ----
        history.append(cells.show(step, own, terms))
    return history


if __name__ == "__main__":
    main()
