"""One process of several: the gradient of the distillation terms as Ultralytics' trainer scales them.

Arguments: a file to write, which gets the number of this process as its ending.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from gkd_fast.distiller import Distiller
from gkd_fast.integrations.ultralytics import _Criterion, pyramid_layers

IMAGES = 4


def network(seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    found = DetectionModel("yolo11n.yaml", nc=3, verbose=False).train()
    found.args = get_cfg()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):  # its statistics would be those of a process's images
            module.eval()
    return found


def no_loss(predictions: object, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """In the place of Ultralytics' own, which divides by the objects of a process."""
    return batch["img"].new_zeros(1), {}


def main(path: str) -> None:
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1:
        dist.init_process_group("gloo")
    student, teacher = network(0), network(1).eval()
    wrapped = DistributedDataParallel(student, find_unused_parameters=True) if world > 1 else student
    torch.manual_seed(2)
    images, boxes = torch.rand(IMAGES, 3, 64, 64), torch.rand(IMAGES, 2, 4) * 0.3 + 0.2
    own = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    torch.manual_seed(3)
    layers = pyramid_layers(student)
    distiller = Distiller(
        teacher, wrapped, 3, layers, boxes="cxcywh", example=images[:1], run_student=lambda net, x: net(x), min_box=4
    )
    student.criterion = _Criterion(no_loss, distiller)
    share = len(images[own])
    batch = {"img": images[own], "bboxes": boxes[own].reshape(-1, 4), "cls": torch.zeros(2 * share, 1)}
    batch["batch_idx"] = torch.arange(share).repeat_interleave(2)
    loss, _ = wrapped(batch)
    (loss.sum() * world).backward()  # as Ultralytics' trainer does
    named = [*student.named_parameters(), *distiller.named_parameters()]
    torch.save({name: p.grad for name, p in named if p.grad is not None}, f"{path}.{rank}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
