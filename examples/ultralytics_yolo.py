"""Ultralytics YOLO 11 or 26, in a loop of one's own. Ultralytics is licensed under the AGPL-3.0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

import cells
import gkd_fast


def network(name: str, classes: Sequence[str]) -> nn.Module:
    """A YOLO with random weights; YOLO("yolo11n.pt").model is one with trained ones."""
    built = DetectionModel(f"{name}.yaml", nc=len(classes), verbose=False)
    built.args = get_cfg()
    return built.train()


def batch_of(images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
    """A batch as Ultralytics' data loader gives it."""
    index = torch.cat([torch.full((len(b),), number) for number, b in enumerate(boxes)])
    boxes = torch.cat(cells.normalised(boxes, images.shape[-1]))
    return {"img": images, "bboxes": boxes, "cls": torch.cat(labels)[:, None].float(), "batch_idx": index}


def loss(student: nn.Module, *batch: object) -> Tensor:
    return student(batch_of(*batch))[0].sum() / len(batch[0])


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    options = cells.options(__doc__, model=["yolo11", "yolo26"]).parse_args(arguments)
    data = cells.load(options)
    teacher, student = (network(f"{options.model}{size}", data.classes) for size in "sn")
    cells.train(teacher, loss, data.batches(options.steps))
    history = []

    # ---- distilling: the student's own loop, and four lines
    layers = [f"model.{index}" for index in student.model[-1].f]  # what the detection head takes in
    example = data.samples[0][0][None]
    distiller = gkd_fast.Distiller(
        teacher, student, data.classes, layers, example=example, boxes="cxcywh", method=options.method, min_box=8
    )
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], 1e-3)
    for step, batch in enumerate(map(batch_of, *zip(*data.batches(options.steps), strict=True))):
        own = student(batch)[0].sum() / len(batch["img"])
        terms = distiller(batch["img"], batch["bboxes"], batch["cls"], batch["batch_idx"])
        optimizer.zero_grad()
        (own + sum(terms.values())).backward()
        optimizer.step()
        # ----
        history.append(cells.show(step, own, terms))
    return history


if __name__ == "__main__":
    main()
