"""The ground truth of a batch, in tensors of one size for all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gkd_fast.instances import Instances

Target = dict[str, Any]


@dataclass(frozen=True)
class PaddedTruth:
    """Ground truth of N images, filled up to G boxes each.

    Attributes:
        boxes: float32 [N,G,4], x1 y1 x2 y2 in pixels of the padded batch; 0 where there is none.
        labels: int64 [N,G], class from 1; 0 where there is no box.
        counts: int64 [N], boxes of each image.
        seeds: int64 [N], from which samples of each image are drawn.
    """

    boxes: Tensor
    labels: Tensor
    counts: Tensor
    seeds: Tensor

    def instances(self) -> Instances:
        """All N G places as instances, with class -1 where there is no box."""
        images, most = self.labels.shape
        image_index = torch.arange(images, device=self.labels.device)[:, None].expand(-1, most)
        return Instances(self.boxes.flatten(0, 1), image_index.reshape(-1), self.labels.flatten() - 1)


class BatchTargets(list[Target]):
    """Targets of a batch, boxes and labels of each image, as views of tensors that hold those of all.

    Args:
        targets: boxes [B_i,4], labels [B_i] from 1; ``draw``, if all have it, seeds the samples of each image. image_id
            and flipped are kept.
        device: for the boxes and labels.
        most: boxes of an image G; None: as many as the image with most has.

    Attributes:
        padded: all images' boxes.
        flat: all boxes as instances, image after image.

    Raises:
        ValueError: for more boxes in an image than `most`.
    """

    def __init__(self, targets: Sequence[Target], device: torch.device, most: int | None = None) -> None:
        boxes = [target["boxes"].as_subclass(Tensor).float().view(-1, 4) for target in targets]
        labels = [target["labels"] for target in targets]
        counts = [len(own) for own in labels]
        self.most = max(counts, default=0) if most is None else most
        if counts and max(counts) > self.most:
            raise ValueError(f"targets: expected at most {self.most} boxes an image, got {max(counts)}")
        number = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        seeds = [target["draw"] for target in targets if "draw" in target]
        drawn = torch.tensor(seeds) if seeds and len(seeds) == len(targets) else torch.randint(2**31, (len(targets),))
        self.padded, self.flat = (
            type(part)(**{name: _sent(value, device) for name, value in vars(part).items()})
            for part in (
                PaddedTruth(_filled(boxes, self.most), _filled(labels, self.most), torch.tensor(counts), drawn),
                Instances(torch.cat(boxes), number, torch.cat(labels) - 1),
            )
        )
        kept = ("image_id", "flipped", "draw")
        super().__init__(
            {"boxes": own_boxes[:count], "labels": own_labels[:count], **{k: t[k] for k in kept if k in t}}
            for t, count, own_boxes, own_labels in zip(
                targets, counts, self.padded.boxes, self.padded.labels, strict=True
            )
        )


def _filled(rows: Sequence[Tensor], most: int) -> Tensor:
    """[N,most,...] with zeros behind the rows of each image."""
    padded = pad_sequence(list(rows), batch_first=True)
    missing = padded.new_zeros(len(padded), most - padded.shape[1], *padded.shape[2:])
    return torch.cat([padded, missing], 1)


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, copied there without waiting."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
