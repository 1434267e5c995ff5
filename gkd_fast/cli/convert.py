"""``gkd-fast convert``: checkpoints of mmdet and detectron2 as teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gkd_fast.cli.parsing import parse
from gkd_fast.convert import Source, convert_file
from gkd_fast.detectors.settings import AP

_DESCRIPTION = """Turn a Faster R-CNN or a RetinaNet of mmdet (2.x, 3.x) or detectron2, ResNet or ResNeXt with FPN, into
a checkpoint of this program, for --teacher-checkpoint. The result detects what the source detects; what cannot be
taken over is an error. Boxes of libraries before mmdet 2.0, whose widths count one pixel more, are not known."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Import of one checkpoint."""

    source: Literal["mmdet", "detectron2"]
    """Library that wrote the checkpoint."""
    checkpoint: Path
    """The checkpoint, .pth or (detectron2) .pkl; pickled code in it is not run."""
    architecture: Literal["faster_rcnn", "retinanet"]
    """Detector."""
    backbone: str
    """torchvision name of the backbone: resnet50, resnet101, resnext101_64x4d, resnext101_32x4d, ..."""
    output: Path
    """File to write."""
    classes: tuple[str, ...] = ()
    """Class names in the checkpoint's order; empty: those that the file names, else COCO's 80 or VOC's 20."""
    teacher_ap: Annotated[float | None, AP] = None
    """AP that the checkpoint is published with, as a fraction (0.398); kept in the file and checked before training."""
    style: Literal["auto", "pytorch", "caffe"] = "auto"
    """Kind of the pre-trained backbone: pytorch (RGB, unit variance) or caffe (BGR, values of 0 to 255 less the mean,
    stride in the 1x1 convolutions); auto: as the file says (mmdet), else pytorch for mmdet, and for detectron2 caffe
    with ResNet, and for ResNeXt BGR with unit variance."""
    relu_before_p7: Literal["auto", "yes", "no"] = "auto"
    """ReLU between RetinaNet's sixth and seventh level; auto: as the file says, else no for mmdet and yes for
    detectron2."""


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, write."""
    required = dict.fromkeys(("source", "checkpoint", "architecture", "backbone", "output"), tyro.MISSING)
    options = parse(arguments, "convert", _DESCRIPTION, ConvertConfig(**required))
    source = Source(
        library=options.source,
        architecture=options.architecture,
        backbone=options.backbone,
        classes=options.classes,
        style=options.style,
        relu_before_p7=options.relu_before_p7,
    )
    done = convert_file(options.checkpoint, options.output, source, ap=options.teacher_ap)
    changed = dataclasses.asdict(done.spec.conventions)
    conventions = ", ".join(f"{name} {value}" for name, value in changed.items())
    print(f"{options.output}: {options.architecture} of {len(done.classes)} classes; conventions: {conventions}")
