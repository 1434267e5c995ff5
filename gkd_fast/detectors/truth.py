"""The ground truth of a batch, in tensors of one size for all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gkd_fast.detectors.constants import remembered
from gkd_fast.instances import Instances

Target = dict[str, Any]
_STEP = 8  # sizes that follow from the number of boxes change seldom


@dataclass(frozen=True)
class PaddedTruth:
    """Ground truth of N images, filled up to G boxes each.

    Attributes:
        boxes: float32 [N,G,4], x1 y1 x2 y2 in pixels of the padded batch; 0 where there is none.
        labels: int64 [N,G], class from 1; 0 where there is no box.
        missing: bool [N,G], places without a box.
        counts: int64 [N], boxes of each image.
        seeds: int64 [2,N], from which anchors and regions of each image are drawn.
    """

    boxes: Tensor
    labels: Tensor
    missing: Tensor
    counts: Tensor
    seeds: Tensor

    def instances(self) -> Instances:
        """All N G places as instances, with class -1 where there is no box."""
        return Instances(self.boxes.flatten(0, 1), row_images(self.labels), self.labels.flatten() - 1)


def row_images(rows: Tensor) -> Tensor:
    """int64 [N*R], the image of each row of [N,R,...]."""
    images, count = rows.shape[:2]
    return remembered(
        ("rows", images, count, rows.device),
        lambda: torch.arange(images, device=rows.device)[:, None].expand(-1, count).reshape(-1),
    )


def row_numbers(rows: Tensor) -> Tensor:
    """int64 [R], 0 to R - 1."""
    return remembered(("numbers", len(rows), rows.device), lambda: torch.arange(len(rows), device=rows.device))


def first_instances(rows: Tensor) -> Tensor:
    """int64 [N], the number of each image's first place among those of [N,G,...]."""
    images, most = rows.shape[:2]
    return remembered(("first", images, most, rows.device), lambda: torch.arange(images, device=rows.device).mul_(most))


class BatchTargets(list[Target]):
    """Targets of a batch, boxes and labels of each image, as views of tensors that hold those of all.

    Args:
        targets: boxes [B_i,4], labels [B_i] from 1; ``draw``, if all have it, seeds the samples of each image. image_id
            and flipped are kept.
        device: for the boxes and labels.
        most: boxes of an image G; None: as many as the image with most has, rounded up to a multiple of 8.

    Attributes:
        padded: all images' boxes.
        flat: all boxes as instances, image after image.

    Raises:
        ValueError: for more boxes in an image than `most`.
    """

    padded: PaddedTruth
    flat: Instances

    def __init__(self, targets: Sequence[Target], device: torch.device, most: int | None = None) -> None:
        counts = [len(target["labels"]) for target in targets]
        self.most = -(-max(counts, default=0) // _STEP) * _STEP if most is None else most
        if counts and max(counts) > self.most:
            raise ValueError(f"targets: expected at most {self.most} boxes an image, got {max(counts)}")
        boxes = torch.cat([target["boxes"].as_subclass(Tensor).float().view(-1, 4) for target in targets])
        labels = torch.cat([target["labels"] for target in targets])
        number = torch.tensor([image for image, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
        places = [image * self.most + place for image, count in enumerate(counts) for place in range(count)]
        shape = len(counts), self.most
        padded_boxes, padded_labels, taken = (
            _filled(rows, torch.tensor(places), shape)
            for rows in (boxes, labels, torch.ones_like(labels, dtype=torch.bool))
        )
        truth = PaddedTruth(padded_boxes, padded_labels, ~taken, torch.tensor(counts), _seeds(targets))
        self.padded = PaddedTruth(**{name: _sent(value, device) for name, value in vars(truth).items()})
        flat = Instances(boxes, number, labels - 1)
        self.flat = Instances(**{name: _sent(value, device) for name, value in vars(flat).items()})
        kept = ("image_id", "flipped", "draw")
        super().__init__(
            {"boxes": own_boxes[:count], "labels": own_labels[:count], **{k: t[k] for k in kept if k in t}}
            for t, count, own_boxes, own_labels in zip(
                targets, counts, self.padded.boxes, self.padded.labels, strict=True
            )
        )


def _filled(rows: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """[*shape,...] with the rows in these places of it and zeros elsewhere."""
    padded = rows.new_zeros(shape[0] * shape[1], *rows.shape[1:])
    return padded.index_copy_(0, places.long().to(rows.device), rows).unflatten(0, shape)


def _seeds(targets: Sequence[Target]) -> Tensor:
    """[2,N], two for each image."""
    drawn = [target["draw"] for target in targets if "draw" in target]
    own = torch.tensor(drawn) if drawn and len(drawn) == len(targets) else torch.randint(2**31, (len(targets),))
    return torch.stack([2 * own, 2 * own + 1])


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, copied there without waiting."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
