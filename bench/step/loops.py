"""The training loops that `bench.step` compares, taken apart: batch, student, distillation, update."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, box_iou

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
from gkd_fast.detectors.backbones import FrozenNorm
from gkd_fast.distiller import Distiller
from gkd_fast.instances import Instances, SoftPairs, image_numbers
from gkd_fast.options import changed
from gkd_fast.training.distilling import build_distiller, distilled_terms, freeze_teacher
from gkd_fast.training.step import Batch, TrainStep

Targets = list[dict[str, Any]]
_MOST_BOXES = 64  # of a scene, in a compiled step
# What the published loops compute, to which a compares.
_PUBLISHED = {"feature_units": "published", "box_levels": "own", "background_trust": "none", "adapter": "1x1"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the networks and of the data."""

    teacher: str = "resnet50"
    student: str = "resnet18"
    side: int = 320
    long_side: int | None = None  # None: squares
    batch: int = 4
    channels: int = 256
    head: int = 1024
    proposals: int = 1000
    rois: int = 512
    images: int = 32
    anchor_size: int = 32
    pyramid_norm: bool = False
    freeze_norm: bool = True
    student_width: float = 1.0
    student_channels: int | None = None  # None: as the teacher
    student_head: int | None = None


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
    compiled: Any

    def __call__(self, batch: Batch, kappa: float) -> dict[str, Tensor]: ...

    def prepare(self, batch: Batch) -> tuple[ImageList, Targets]: ...

    def student_pass(self, images: ImageList, targets: Targets) -> StudentPass: ...

    def distil(self, own: StudentPass, images: ImageList, kappa: float) -> dict[str, Tensor]: ...

    def update(self, terms: dict[str, Tensor], image_ids: list[int]) -> Any: ...


def make_config(
    detector: str, scale: Scale, *, amp: bool, compiled: bool, published: bool, device: str = "cpu"
) -> Config:
    """Published sizes of a detector; scenes in the place of photographs."""
    model = {"teacher": scale.teacher, "student": scale.student, "teacher_width": 1.0}
    model |= {"student_width": scale.student_width, "teacher_channels": scale.channels, "teacher_head": scale.head}
    model |= {"student_channels": scale.student_channels or scale.channels}
    model |= {"student_head": scale.student_head or scale.head, "anchor_size": scale.anchor_size}
    model |= {"proposals": scale.proposals, "rois": scale.rois}
    model |= {"pyramid_norm": scale.pyramid_norm, "freeze_norm": scale.freeze_norm}
    config = changed(PLAIN, {"detector": detector, **(_PUBLISHED if published else {}), **model})
    return replace(config, "run", amp=amp, compile="on" if compiled else "off", device=device)


def make_data(scale: Scale) -> PreparedDataset:
    """Scenes, drawn once and kept in memory."""
    long_side = scale.long_side or scale.side
    scenes = Scenes(scale.images, size=(scale.side, long_side))
    return PreparedDataset(scenes, short_side=scale.side, long_side=long_side, flip=0.5, cache=True)


def make_loop(
    variant: str,
    detector: str,
    scale: Scale,
    classes: tuple[str, ...],
    *,
    compiled: bool | None = None,
    published: bool = True,
    method: str | None = None,
    device: str = "cpu",
) -> Loop:
    """The loop of a variant, by its key.

    Args:
        compiled: None: as the variant says.
        published: whether all loops compute what the published one does; else ours distil with the default settings.
        method: what ours distil by with the default settings; None: global knowledge.
    """
    compiled = VARIANTS[variant].compiled if compiled is None else compiled
    published = variant == "a" or (published and method is None)
    precision = VARIANTS[variant].amp
    config = make_config(detector, scale, amp=precision, compiled=compiled, published=published, device=device)
    if method is not None:
        config = changed(config, {"method": method})
    torch.manual_seed(0)
    teacher_spec, student_spec = specs(config.model)
    teacher, student = (build_detector(spec, len(classes)).train().to(device) for spec in (teacher_spec, student_spec))
    if variant == "a":
        return TorchvisionLoop(student, teacher, classes, config)
    freeze_teacher(teacher, torch.device(device))
    adapter = adapt(student)
    distiller = build_distiller(adapt(teacher), adapter, classes, config.distill)
    return TrainStep(adapter, config, 1e-4, torch.device(device), distiller, most=_MOST_BOXES)


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
        self.precision = SimpleNamespace(autocast=nullcontext)
        self.compiled = None
        self.device = torch.device(config.run.device)

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
        scaled = [image.to(self.device).float().div(255) for image in images]
        padded, _ = GeneralizedRCNNTransform.forward(self.adapter.model.transform, scaled)
        return padded, plain_targets(targets, self.device)

    def student_pass(self, images: ImageList, targets: Targets) -> StudentPass:
        return self.adapter.train_pass(images, targets)

    def distil(self, own: StudentPass, images: ImageList, kappa: float) -> dict[str, Tensor]:
        return distilled_terms(self.distiller, own, images.tensors, kappa)

    def update(self, terms: dict[str, Tensor], image_ids: list[int]) -> None:
        nn.utils.clip_grad_norm_(self.trainable, 10.0)
        self.optimizer.step()


def _as_torchvision(model: nn.Module) -> DetectorAdapter:
    """The adapter with torchvision's own RoIAlign, losses and frozen batch normalisation."""
    for module in model.modules():
        if isinstance(module, FrozenNorm):
            module.__class__ = FrozenBatchNorm2d
    if not hasattr(model, "roi_heads"):
        return _PlainRetinaNet(model)
    return _PlainFasterRCNN(model)


class _PlainFasterRCNN(FasterRCNNAdapter):
    """Sizes follow from the data: as many instances as there are positive proposals."""

    def train_pass(self, images: ImageList, targets: Targets) -> StudentPass:
        targets = plain_targets(targets, images.tensors.device)
        rpn, heads = self.model.rpn, self.model.roi_heads
        pyramid = self.pyramid(images)
        proposals, losses = rpn(images, pyramid, targets)
        proposals, _, labels, regression_targets = heads.select_training_samples(proposals, targets)
        sizes = [tuple(images.tensors.shape[-2:])] * len(proposals)
        roi = heads.box_roi_pool(pyramid, proposals, sizes)
        logits, box_regression = self.box_predictor(heads.box_head(roi))
        loss_class, loss_box = fastrcnn_loss(logits, box_regression, labels, regression_targets)
        losses |= {"loss_classifier": loss_class, "loss_box_reg": loss_box}
        boxes, classes = torch.cat(proposals), torch.cat(labels)
        positive = torch.where(classes > 0)[0]
        instances = Instances(boxes[positive], image_numbers(proposals)[positive], classes[positive] - 1)
        soft = {"logits": logits[positive], "roi": roi[positive], "size": sizes[0]}
        return StudentPass(losses, list(pyramid.values()), instances, targets, soft)

    def classify(self, pyramid: dict[str, Tensor], boxes: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            roi = self.model.roi_heads.box_roi_pool(pyramid, boxes, [size] * len(boxes))
            return self.box_predictor(self.model.roi_heads.box_head(roi))[0], roi

    def soft_pairs(self, own: StudentPass, teacher: FasterRCNNAdapter, teacher_pyramid: dict[str, Tensor]) -> SoftPairs:
        instances = own.instances
        boxes = [instances.boxes[instances.image_index == image] for image in range(len(own.targets))]
        logits, roi = teacher.classify(teacher_pyramid, boxes, own.soft["size"])
        return SoftPairs(
            student=own.soft["logits"],
            teacher=logits,
            instance=torch.arange(len(logits), device=logits.device),
            level=self._levels(own),
            student_embedding=own.soft["roi"].mean((2, 3)),
            teacher_embedding=roi.mean((2, 3)),
        )


class _PlainRetinaNet(RetinaNetAdapter):
    def train_pass(self, images: ImageList, targets: Targets) -> StudentPass:
        targets = plain_targets(targets, images.tensors.device)
        model = self.model
        features = list(self.pyramid(images).values())
        outputs = model.head(features)
        anchors = model.anchor_generator(images, features)
        matched = [
            model.proposal_matcher(box_iou(target["boxes"], boxes))
            if len(target["boxes"])
            else boxes.new_full(boxes.shape[:1], -1, dtype=torch.int64)
            for boxes, target in zip(anchors, targets, strict=True)
        ]
        losses = model.head.compute_loss(targets, outputs, anchors, matched)
        losses = {f"loss_{name.removeprefix('loss_')}": value for name, value in losses.items()}
        classes = model.head.classification_head.num_classes
        logits = classify_maps(outputs["cls_logits"], features, classes)
        counts = targets.padded.counts
        soft = {"logits": logits, "matched": torch.stack(matched), "first": counts.cumsum(0) - counts}
        return StudentPass(losses, features, targets.flat, targets, soft)


def classify_maps(rows: Tensor, features: list[Tensor], classes: int) -> list[Tensor]:
    """Rows [N,A,K] as the maps [N,A_l*K,H_l,W_l] that they were joined from."""
    per_cell = rows.shape[1] // sum(f.shape[2] * f.shape[3] for f in features)
    parts = rows.split([per_cell * f.shape[2] * f.shape[3] for f in features], 1)
    return [
        part.unflatten(1, (*feature.shape[2:], per_cell)).permute(0, 3, 4, 1, 2).flatten(1, 2)
        for part, feature in zip(parts, features, strict=True)
    ]
