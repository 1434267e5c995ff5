"""One process of several, each with its share of four images: writes its terms, gradients and prototypes to a file.

Arguments: a folder, and one or several numbers of images that have boxes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from own_networks import make_boxes, make_images, make_pair, own_loss
from torch.nn.parallel import DistributedDataParallel

IMAGES = 4


def train(world: int, rank: int, with_boxes: int) -> dict[str, object]:
    """The last of three steps."""
    _, student, distiller = make_pair(method="gkd+fgd+cwd", refresh_steps=2)
    wrapped = DistributedDataParallel(student) if world > 1 else student
    share = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    for seed in range(3):  # in the second, the prototypes come from the steps of all processes
        student.zero_grad()
        distiller.zero_grad()
        images = make_images(count=IMAGES, seed=seed)
        boxes, labels = make_boxes(images=IMAGES, seed=seed)
        boxes = [b if n < with_boxes else b[:0] for n, b in enumerate(boxes)]
        labels = [b if n < with_boxes else b[:0] for n, b in enumerate(labels)]
        ids = torch.arange(IMAGES) + IMAGES * seed
        loss = own_loss(wrapped(images[share]))
        terms = distiller(images[share], boxes[share], labels[share], image_ids=ids[share])
        (loss + sum(terms.values())).backward()
    assert distiller.bank is not None
    return {
        "terms": {name: value.detach() for name, value in terms.items()},
        "student": [p.grad for p in student.parameters()],
        "distiller": [p.grad for p in distiller.parameters()],
        "prototypes": distiller.bank.student,
        "image_ids": distiller.bank.image_ids,
    }


def main(folder: Path, cases: list[int]) -> None:
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1:
        dist.init_process_group("gloo")
    torch.save({with_boxes: train(world, rank, with_boxes) for with_boxes in cases}, folder / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]])
