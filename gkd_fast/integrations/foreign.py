"""Detectors of other libraries as teachers of torchvision's: their input, their maps, their classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from gkd_fast.watching import Hook, Watched

_LEAST_OVERLAP = 0.5  # IoU of a box and the teacher's prediction that is asked about it


@dataclass(frozen=True)
class Teacher:
    """A network of another library, for `gkd_fast.integrations.torchvision.Distiller`.

    Attributes:
        network: the detector.
        layers: its modules that give feature maps, from the finest on.
        classes: its names, in the order of its outputs.
        predict: runs it on a batch [N,3,H,W] in its own normalisation; boxes [N,Q,4] x1 y1 x2 y2 in pixels of the
            batch, and class logits [N,Q,K], or [N,Q,K+1] with "no object" last where they are exclusive.
        exclusive: its classes exclude each other (softmax).
        mean, std: of its input, in units of 0..1.
        padding: value that its input has beside the images, in units of 0..1; None: zero behind the normalisation.
    """

    network: nn.Module
    layers: Sequence[str]
    classes: tuple[str, ...]
    predict: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    exclusive: bool
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: float | None = None

    def normalised(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """A batch [N,3,H,W] of images in 0..1 as the network expects it, beside the images' sizes as padded there."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        result = (images - mean) / std
        for image, (height, width) in zip(result, sizes, strict=False):
            edge = 0.0 if self.padding is None else (self.padding - mean) / std
            image[:, height:] = edge
            image[:, :, width:] = edge
        return result


def shared_levels(
    student: nn.Module, teacher: Teacher, example: Tensor, run: Callable[[nn.Module, Tensor], Any]
) -> tuple[list[str], list[str]]:
    """The layers of both networks whose maps have the same strides.

    Args:
        student: a torchvision detector with a feature pyramid.
        teacher: the teacher.
        example: images [N,3,H,W] in 0..1.
        run: how the student's backbone is run.

    Raises:
        ValueError: if there are none, or the student has no such pyramid.
    """
    blocks = getattr(getattr(student.backbone, "fpn", None), "layer_blocks", None)
    if blocks is None:
        raise ValueError(
            "layers: expected the student's and the teacher's names, for a student without torchvision's FPN"
        )
    names = [f"backbone.fpn.layer_blocks.{number}" for number in range(len(blocks))]
    own = [_sides("student", student, [name], example, run)[0] for name in names]
    theirs = {layer: _sides("teacher", teacher.network, [layer], example, teacher.predict) for layer in teacher.layers}
    kept = [layer for layer, sides in theirs.items() if set(sides) <= set(own)]
    found = {side for layer in kept for side in theirs[layer]}
    if not kept:
        raise ValueError(f"layers: expected maps of equal strides, got sizes {own} and {list(theirs.values())}")
    return [name for name, side in zip(names, own, strict=True) if side in found], kept


def _sides(
    role: str, network: nn.Module, layers: list[str], example: Tensor, run: Callable[[nn.Module, Tensor], Any]
) -> list[tuple[int, ...]]:
    """Height and width of the maps of an example."""
    watched = Watched(role, network, layers, run)
    try:
        return [tuple(feature.shape[-2:]) for feature in watched.example(example)]
    finally:
        watched.remove()


class _Kept(Hook):
    """Keeps a module's last output that carries gradients."""

    def __init__(self) -> None:
        self.value: Any = None

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self.value = output


class SoftLabels:
    """Class logits of a torchvision student and of a teacher for the same boxes, on the classes that both have.

    The teacher is asked by its prediction that overlaps a box the most; where that is less than half, it has no opinion
    and the student's own logits take its place.

    Args:
        student: torchvision's Faster R-CNN or RetinaNet.
        teacher: the teacher.
        classes: names of the labels 1, 2, ...

    Attributes:
        predicted: boxes and logits of the teacher's last pass, to be set by who runs it.
        shape: height and width of its batch.

    Raises:
        ValueError: if no class is shared.
    """

    def __init__(self, student: FasterRCNN | RetinaNet, teacher: Teacher, classes: Sequence[str]) -> None:
        shared = [name for name in classes if name in teacher.classes]
        if not shared:
            raise ValueError(
                f"teacher: expected classes among {', '.join(classes[:10])}, got {', '.join(teacher.classes[:10])}; "
                "without them, soft_labels=False"
            )
        if lacking := [name for name in classes if name not in shared]:
            warnings.warn(
                f"soft labels: {len(lacking)} of {len(classes)} classes are unknown to the teacher, the first "
                f"{lacking[0]}",
                stacklevel=4,
            )
        self.student, self.teacher = student, teacher
        self.own = [classes.index(name) + 1 for name in shared]  # output 0 is the background, or unused
        self.theirs = [teacher.classes.index(name) for name in shared]
        self.known = [classes.index(name) for name in shared]
        self.predicted: tuple[Tensor, Tensor] | None = None
        self.seen, self.outputs = _Kept(), _Kept()
        self.shape = (0, 0)

    def hooks(self) -> list[Any]:
        """Handles of the hooks that keep what the student's last training pass computed."""
        self.seen, self.outputs = _Kept(), _Kept()
        handles = [self.student.backbone.register_forward_hook(self.seen)]
        if isinstance(self.student, RetinaNet):
            handles.append(self.student.head.register_forward_hook(self.outputs))
        return handles

    def __call__(self, boxes: Tensor, image_index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """[B,K'] of both, for boxes [B,4] of images [B] with classes [B] from 0."""
        logits = (self._two_stage if isinstance(self.student, FasterRCNN) else self._one_stage)(boxes, image_index)
        self.seen.value = self.outputs.value = None
        own = logits[:, self.own].float()
        theirs, sure = self._asked(boxes, image_index)
        known = torch.isin(labels, torch.tensor(self.known, device=labels.device))
        return own, theirs.where((sure & known)[:, None], own.detach())

    def _two_stage(self, boxes: Tensor, image_index: Tensor) -> Tensor:
        heads = self.student.roi_heads
        images = next(iter(self.seen.value.values())).shape[0]
        order = torch.argsort(image_index, stable=True)
        rows = [boxes[image_index == number] for number in range(images)]
        pooled = heads.box_roi_pool(self.seen.value, rows, [self.shape] * images)
        logits = heads.box_predictor(heads.box_head(pooled))[0]
        return torch.empty_like(logits).index_copy(0, order, logits)

    def _one_stage(self, boxes: Tensor, image_index: Tensor) -> Tensor:
        features = list(self.seen.value.values())
        logits = self.outputs.value["cls_logits"]
        batch = ImageList(logits.new_zeros(len(logits), 1, *self.shape), [self.shape] * len(logits))
        anchors = self.student.anchor_generator(batch, features)[0]
        if len(boxes) == 0:
            return logits.new_zeros(0, logits.shape[-1])
        return logits[image_index, box_iou(boxes, anchors).argmax(1)]

    @torch.no_grad()
    def _asked(self, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits [B,K'] for the boxes, as the student has them, and whether it saw something there."""
        assert self.predicted is not None
        predicted, logits = (part.float() for part in self.predicted)
        best = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        overlap = boxes.new_zeros(len(boxes))
        for number in range(len(predicted)):
            rows = torch.where(image_index == number)[0]
            if len(rows):
                overlap[rows], best[rows] = box_iou(boxes[rows], predicted[number]).max(1)
        found = logits[image_index, best]
        return self._translated(found)[:, self.theirs], overlap >= _LEAST_OVERLAP

    def _translated(self, logits: Tensor) -> Tensor:
        """The teacher's logits [B,K'] for a softmax over the classes (two-stage students), or for sigmoids."""
        exclusive = isinstance(self.student, FasterRCNN)
        if self.teacher.exclusive:
            return logits[:, :-1] if exclusive else torch.logit(logits.softmax(1)[:, :-1], eps=1e-6)
        return nn.functional.logsigmoid(logits) if exclusive else logits
