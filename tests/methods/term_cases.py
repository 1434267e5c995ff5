"""Steps made by hand for single methods, and tiny detectors for whole ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast.detectors import DetectorAdapter, DetectorSpec, adapt, build_detector, plain_targets
from gkd_fast.detectors.settings import OFFERED
from gkd_fast.instances import Instances
from gkd_fast.methods import Setup, Step

Rows = list[list[float]]


def make_setup(channels: int = 1, *, stage: str = "one_stage", levels: int = 1) -> Setup:
    """Both networks alike, and all that a detector of the stage offers."""
    return Setup(
        stage=stage,
        student_channels=(channels,) * levels,
        teacher_channels=(channels,) * levels,
        offered=OFFERED[stage],
    )


def make_map(*channels: Rows) -> Tensor:
    """One image [1,C,H,W]."""
    return torch.tensor([channels], dtype=torch.float32)


def make_step(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    boxes: Rows | None = None,
    *,
    image_index: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    stride: int = 8,
    **parts,
) -> Step:
    """One level, or several whose strides double."""
    students = [student] if isinstance(student, Tensor) else list(student)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    count = len(boxes or [])
    truth = Instances(
        boxes=torch.tensor(boxes or [], dtype=torch.float32).view(-1, 4),
        image_index=torch.tensor(image_index or [0] * count, dtype=torch.int64),
        labels=torch.zeros(count, dtype=torch.int64),
    )
    weight = torch.ones(count) if weights is None else torch.tensor(weights, dtype=torch.float32)
    strides = tuple(stride * 2**level for level in range(len(students)))
    return Step(
        student=students,
        teacher=teachers,
        teacher_own=teachers,
        strides=strides,
        teacher_strides=strides,
        truth=truth,
        instances=truth,
        weights=weight.expand(len(students), -1),
        images=torch.zeros(len(students[0]), 3, 1, 1),
        **parts,
    )


def identity(convolutions: nn.ModuleList) -> None:
    """Make convolutions pass their input on."""
    for convolution in convolutions:
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)


def anchors_of(*levels: Rows) -> Callable[[], list[Tensor]]:
    """The anchors that a step offers."""
    anchors = [torch.tensor(rows, dtype=torch.float32) for rows in levels]
    return lambda: anchors


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (area - wide * high)


def tiny_detectors(detector: str, *, channels: tuple[int, int] = (8, 12)) -> tuple[DetectorAdapter, DetectorAdapter]:
    """Student and teacher of three classes."""
    torch.manual_seed(0)
    specs = [
        DetectorSpec(
            detector=detector,
            backbone="mobilenet_v2",
            width=0.1,
            channels=depth,
            head=16,
            anchor_size=16,
            proposals=20,
            rois=16,
        )
        for depth in channels
    ]
    student, teacher = (adapt(build_detector(spec, 3)) for spec in specs)
    if detector == "retinanet":  # untrained heads answer the same everywhere
        for layer in teacher.model.head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return student, teacher


def tiny_batch(student: DetectorAdapter, *, boxes: bool = True) -> tuple[ImageList, list[dict[str, Tensor]]]:
    """Two images, of which the second has no boxes."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=generator) for _ in range(2)]
    targets = [
        {
            "boxes": torch.tensor([[10.0, 10, 60, 50], [70, 20, 100, 80], [20, 60, 45, 90]]),
            "labels": torch.tensor([1, 3, 1]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    if not boxes:
        targets[0] = targets[1]
    return student.batch(images), plain_targets(targets, torch.device("cpu"))
