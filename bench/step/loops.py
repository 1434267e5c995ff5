"""The training loops that `bench.step` compares, taken apart: batch, student, distillation, update."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from bench.operators import published
from gkd_fast.config import PLAIN, Config, replace
from gkd_fast.data import Scenes
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import (
    DetectorAdapter,
    FasterRCNNAdapter,
    RetinaNetAdapter,
    StudentPass,
    adapt,
    build_detector,
    plain_targets,
    specs,
)
from gkd_fast.distiller import Distiller
from gkd_fast.options import changed
from gkd_fast.training.distilling import build_distiller, distilled_terms, freeze_teacher
from gkd_fast.training.step import Batch, TrainStep

Targets = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the networks and of the data."""

    teacher: str = "resnet50"
    student: str = "resnet18"
    side: int = 320
    batch: int = 4
    channels: int = 256
    head: int = 1024
    proposals: int = 1000
    rois: int = 512
    images: int = 32


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What sets one of the compared loops apart."""

    title: str
    amp: bool = False
    compiled: bool = False


VARIANTS = {
    "a": Variant(title="torchvision, float32, published loops"),
    "b": Variant(title="ours"),
    "c": Variant(title="ours, --amp", amp=True),
    "d": Variant(title="ours, --compile", compiled=True),
    "e": Variant(title="ours, --amp --compile", amp=True, compiled=True),
}


class Loop(Protocol):
    """One training loop; calling it is one step, the parts are those of the step."""

    adapter: DetectorAdapter
    distiller: Distiller
    trainable: list[nn.Parameter]
    precision: Any

    def __call__(self, batch: Batch, kappa: float) -> dict[str, Tensor]: ...

    def prepare(self, batch: Batch) -> tuple[ImageList, Targets]: ...

    def student_pass(self, images: ImageList, targets: Targets) -> StudentPass: ...

    def distil(self, own: StudentPass, images: ImageList, kappa: float) -> dict[str, Tensor]: ...

    def update(self, terms: dict[str, Tensor], image_ids: list[int]) -> Any: ...

    def _compiled(self) -> AbstractContextManager[None]: ...


def make_config(detector: str, scale: Scale, *, amp: bool, compiled: bool) -> Config:
    """Published sizes of a detector; scenes in the place of photographs."""
    model = {"teacher": scale.teacher, "student": scale.student, "teacher_width": 1.0, "student_width": 1.0}
    model |= {"teacher_channels": scale.channels, "student_channels": scale.channels}
    model |= {"teacher_head": scale.head, "student_head": scale.head, "anchor_size": 32}
    model |= {"proposals": scale.proposals, "rois": scale.rois, "pyramid_norm": False, "freeze_norm": True}
    config = changed(PLAIN, {"detector": detector, **model})
    return replace(config, "run", amp=amp, compile="on" if compiled else "off", device="cpu")


def make_data(scale: Scale) -> PreparedDataset:
    """Scenes, drawn once and kept in memory."""
    scenes = Scenes(scale.images, size=(scale.side, scale.side))
    return PreparedDataset(scenes, short_side=scale.side, long_side=scale.side, flip=0.5, cache=True)


def make_loop(variant: str, detector: str, scale: Scale, classes: tuple[str, ...]) -> Loop:
    """The loop of a variant, by its key."""
    config = make_config(detector, scale, amp=VARIANTS[variant].amp, compiled=VARIANTS[variant].compiled)
    device = torch.device("cpu")
    torch.manual_seed(0)
    teacher_spec, student_spec = specs(config.model)
    teacher, student = (build_detector(spec, len(classes)).train() for spec in (teacher_spec, student_spec))
    if variant == "a":
        return TorchvisionLoop(student, teacher, classes, config)
    freeze_teacher(teacher, device)
    adapter = adapt(student)
    distiller = build_distiller(adapt(teacher), adapter, classes, config.distill)
    return TrainStep(adapter, config, 1e-4, device, distiller)


class TorchvisionLoop:
    """torchvision's networks, losses and RoIAlign in float32, the published algorithm, the optimiser's defaults.

    Args:
        student, teacher: plain detectors.
        classes: names.
        config: of the methods.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, classes: tuple[str, ...], config: Config) -> None:
        self.adapter = _as_torchvision(student)
        frozen = _as_torchvision(teacher.eval().requires_grad_(False))
        self.distiller = build_distiller(frozen, self.adapter, classes, config.distill)
        self.distiller.methods["gkd"].objective = published.robust_distilling
        self.trainable = [*student.parameters(), *self.distiller.parameters()]
        self.optimizer = AdamW([p for p in self.trainable if p.requires_grad], lr=1e-4)
        self.precision = None

    def __call__(self, batch: Batch, kappa: float) -> dict[str, Tensor]:
        images, targets = self.prepare(batch)
        own = self.student_pass(images, targets)
        terms = {**own.losses, **self.distil(own, images, kappa)}
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self.update(terms, [])
        return terms

    def prepare(self, batch: Batch) -> tuple[ImageList, Targets]:
        images, targets = batch
        scaled = [image.float().div(255) for image in images]
        return self.adapter.model.transform(scaled)[0], plain_targets(targets, torch.device("cpu"))

    def student_pass(self, images: ImageList, targets: Targets) -> StudentPass:
        return self.adapter.train_pass(images, targets)

    def distil(self, own: StudentPass, images: ImageList, kappa: float) -> dict[str, Tensor]:
        return distilled_terms(self.distiller, own, images.tensors, kappa)

    def update(self, terms: dict[str, Tensor], image_ids: list[int]) -> None:
        nn.utils.clip_grad_norm_(self.trainable, 10.0)
        self.optimizer.step()

    def _compiled(self) -> AbstractContextManager[None]:
        return nullcontext()


def _as_torchvision(model: nn.Module) -> DetectorAdapter:
    """The adapter with torchvision's own RoIAlign and losses."""
    if not hasattr(model, "roi_heads"):
        return _PlainRetinaNet(model)
    return _PlainFasterRCNN(model)


class _PlainFasterRCNN(FasterRCNNAdapter):
    def _roi_align(self) -> nn.Module:
        return self.model.roi_heads.box_roi_pool


class _PlainRetinaNet(RetinaNetAdapter):
    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        return self.model.proposal_matcher(box_iou(boxes, anchors))

    def _classification_loss(self, logits: Tensor, targets: Targets, matched: list[Tensor]) -> Tensor:
        return self.model.head.classification_head.compute_loss(targets, {"cls_logits": logits}, matched)

    def _box_loss(
        self, outputs: dict[str, Tensor], targets: Targets, anchors: list[Tensor], matched: Iterable[Tensor]
    ) -> Tensor:
        return self.model.head.regression_head.compute_loss(targets, outputs, anchors, matched)
