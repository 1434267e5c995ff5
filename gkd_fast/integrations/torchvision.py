"""Distillation of torchvision's detectors, which resize and normalise images inside.

    from gkd_fast.integrations.torchvision import Distiller

    distiller = Distiller(teacher, student, classes)      # names of labels 1, 2, ...
    losses = student(images, targets)
    terms = distiller(images, targets)
    (sum(losses.values()) + sum(terms.values())).backward()

FCOS, RetinaNet, SSD, SSDlite and Faster R-CNN, in the user's own loop. The teacher may come from Ultralytics or
transformers: ``as_teacher`` of `gkd_fast.integrations.ultralytics` and `gkd_fast.integrations.transformers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gkd_fast import distiller
from gkd_fast.integrations.foreign import SoftLabels, Teacher, shared_levels
from gkd_fast.watching import Hook, unwrapped

Targets = Sequence[dict[str, Any]]
"""Of each image: boxes [B,4] x1 y1 x2 y2 in its pixels, labels [B] from 1; image_id where it is known."""


class Distiller(distiller.Distiller):
    """`gkd_fast.Distiller` with the student's own arguments: images and boxes are those that its transform gives out.

    The teacher runs on the student's batch, normalised as the teacher expects it.

    Args:
        teacher: torchvision's detector, or a `Teacher` of another library.
        student: torchvision's detector.
        classes: names of the labels 1, 2, ..., or their number.
        layers, teacher_layers: modules that give feature maps; None: the backbone, and with a teacher of another
            library the levels of both networks that have the same strides.
        example: None: drawn as the student's transform has them.
        stage: None: as the student is.
        soft_labels: of a teacher of another library and a Faster R-CNN or RetinaNet: its classes for the boxes, by the
            names that both have.
        **options: others of `gkd_fast.Distiller`.

    Raises:
        TypeError: for a network without torchvision's transform.
        ValueError: for a teacher of another library without a class or a stride of the student.
    """

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        student: nn.Module,
        classes: Iterable[str] | int,
        layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        *,
        example: Tensor | None = None,
        stage: Literal["one_stage", "two_stage"] | None = None,
        soft_labels: bool = True,
        **options: Any,
    ) -> None:
        own, batch = _transform("student", student), _Batch()
        if example is None:
            size = own.fixed_size[::-1] if own.fixed_size else (256, 256)
            example = torch.zeros(1, 3, *size, device=next(student.parameters()).device)
        self._soft_hooks: list[Any] = []
        names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        if isinstance(teacher, Teacher):
            inner = unwrapped(student)
            if layers is None:
                layers, teacher_layers = shared_levels(inner, teacher, example, _backbone)
            soft = None
            if soft_labels and "logits" not in options and isinstance(inner, (FasterRCNN, RetinaNet)):
                soft = options["logits"] = SoftLabels(inner, teacher, names)
            run_teacher = _foreign_run(teacher, own, batch, soft)
        else:
            other, soft = _transform("teacher", teacher), None

            def run_teacher(net: Any, images: Tensor) -> Any:
                return net.backbone(_renormalised(images, own, other, batch.sizes))

        super().__init__(
            teacher.network if isinstance(teacher, Teacher) else teacher,
            student,
            names,
            layers or ("backbone",),
            teacher_layers,
            example=example,
            stage=stage or ("two_stage" if hasattr(unwrapped(student), "roi_heads") else "one_stage"),
            run_student=_backbone,
            run_teacher=run_teacher,
            **options,
        )
        self._soft_hooks = soft.hooks() if soft else []
        self._batch, self._transform = batch, [own]  # a list, so that it is no submodule
        self._hook = own.register_forward_hook(batch)

    def forward(  # type: ignore[override] # torchvision's own batches
        self, images: Sequence[Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """The terms of the step whose ``student(images, targets)`` was just run.

        Args:
            images: N tensors [3,H_i,W_i], as the student was given them.
            targets: of the images, as the student was given them.

        Returns, Raises: as `gkd_fast.Distiller`.
        """
        prepared, found = self._batch.take()
        if len(prepared.tensors) != len(images) or len(found) != len(targets):
            raise ValueError(
                f"images, targets: expected the {len(prepared.tensors)} that the student was run on, got "
                f"{len(images)} and {len(targets)}"
            )
        return super().forward(prepared.tensors, *_instances(found), image_ids=_image_ids(targets))

    def refresh(  # type: ignore[override]
        self, loader: Iterable[tuple[Sequence[Tensor], Targets]] | None = None, **options: Any
    ) -> Any:
        """Generate the prototypes anew, see `gkd_fast.Distiller`; a loader gives (images, targets)."""
        return super().refresh(None if loader is None else self._prepared(loader), **options)

    def remove(self) -> None:
        """Take the hooks off both networks."""
        super().remove()
        self._batch.forget()
        for hook in (self._hook, *self._soft_hooks):
            hook.remove()

    def _prepared(self, loader: Iterable[tuple[Sequence[Tensor], Targets]]) -> Iterator[tuple[Any, ...]]:
        for images, targets in loader:
            device = self.device
            moved = [{**target, "boxes": target["boxes"].to(device)} for target in targets]
            prepared, found = self._transform[0]([image.to(device) for image in images], moved)
            yield prepared.tensors, *_instances(found), _image_ids(targets)


class _Batch(Hook):
    """Keeps what the transform gave out."""

    def __init__(self) -> None:
        self.value: tuple[ImageList, Targets | None] | None = None
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, _module: nn.Module, _inputs: Any, output: tuple[ImageList, Targets | None]) -> None:
        self.value, self.sizes = output, output[0].image_sizes

    def take(self) -> tuple[ImageList, Targets]:
        value, self.value = self.value, None
        if value is None or value[1] is None:
            raise RuntimeError("student: expected student(images, targets) before the distiller, it was not run so")
        return value[0], value[1]

    def forget(self) -> None:
        self.value = None


def _backbone(network: Any, images: Tensor) -> Any:
    return network.backbone(images)


def _foreign_run(
    teacher: Teacher, own: GeneralizedRCNNTransform, batch: _Batch, soft: SoftLabels | None
) -> Callable[[nn.Module, Tensor], None]:
    """How a teacher of another library is run on the student's batch; keeps what it predicts for the soft labels."""

    def run(network: nn.Module, images: Tensor) -> None:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (own.image_mean, own.image_std))
        predicted = teacher.predict(network, teacher.normalised(images * std + mean, batch.sizes))
        if soft is not None:
            soft.predicted, soft.shape = predicted, (images.shape[-2], images.shape[-1])

    return run


def _transform(role: str, network: nn.Module) -> GeneralizedRCNNTransform:
    transform = getattr(unwrapped(network), "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform):
        raise TypeError(
            f"{role}: expected a torchvision detector, whose transform resizes and normalises, got "
            f"{type(unwrapped(network)).__name__}; gkd_fast.Distiller takes any network"
        )
    return transform


def _instances(targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and labels from 0."""
    return [target["boxes"] for target in targets], [target["labels"] - 1 for target in targets]


def _image_ids(targets: Targets) -> list[int] | None:
    if not all("image_id" in target for target in targets):
        return None
    return [int(target["image_id"]) for target in targets]


def _renormalised(
    images: Tensor, own: GeneralizedRCNNTransform, other: GeneralizedRCNNTransform, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """A batch [N,3,H,W] of the student's as the teacher's transform would have normalised it; padding stays zero."""
    if list(own.image_mean) == list(other.image_mean) and list(own.image_std) == list(other.image_std):
        return images
    student_mean, student_std, mean, std = (
        images.new_tensor(values)[:, None, None]
        for values in (own.image_mean, own.image_std, other.image_mean, other.image_std)
    )
    converted = (images * student_std + student_mean - mean) / std
    for image, (height, width) in zip(converted, sizes, strict=False):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return converted
