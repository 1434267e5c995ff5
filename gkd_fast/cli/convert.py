"""``gkd-fast convert``: checkpoints of mmdet and detectron2 as teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gkd_fast.cli.parsing import parse
from gkd_fast.data.settings import DataConfig
from gkd_fast.detectors.settings import AP, check_checkpoint
from gkd_fast.ranges import FRACTION, POSITIVE

_DESCRIPTION = """Turn a Faster R-CNN, a Mask R-CNN (without its masks) or a RetinaNet of mmdet (2.x, 3.x), detectron2
or torchvision, ResNet or ResNeXt with FPN, into a checkpoint of this program, for --teacher-checkpoint. What it is is
read from its weights, how it is used from its configuration: the result detects what the source detects, and what
cannot be taken over is an error. Boxes of libraries before mmdet 2.0, whose widths count one pixel more, are not
known."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Import of one checkpoint."""

    checkpoint: Path
    """The checkpoint, .pth or (detectron2) .pkl; pickled code in it is not run."""
    output: Path
    """File to write."""
    source: Literal["auto", "mmdet", "detectron2", "torchvision"] = "auto"
    """Library that wrote the checkpoint; auto: as its weights say."""
    architecture: Literal["auto", "faster_rcnn", "retinanet"] = "auto"
    """Detector; auto: as its weights say."""
    backbone: str = ""
    """torchvision name of the backbone: resnet50, resnext101_64x4d, ...; empty: as its weights say."""
    config: Path | None = None
    """Configuration of the training: mmdet's .py or detectron2's config.yaml, read and not run. None: the one in the
    checkpoint (mmdet), else the library's own for COCO."""
    prefix: str = ""
    """Take the network whose weights' names start so (student., architecture., teacher.), from a distiller's file."""
    classes: tuple[str, ...] = ()
    """Class names in the checkpoint's order; empty: those that the file names, else COCO's 80 or VOC's 20."""
    short_side: Annotated[int | None, POSITIVE] = None
    """Length that the shorter side of an image gets, in pixels; None: as the configuration says, else 800."""
    long_side: Annotated[int | None, POSITIVE] = None
    """Longest that the longer side then is, in pixels; None: as the configuration says, else 1333."""
    teacher_ap: Annotated[float | None, AP] = None
    """AP that the checkpoint is published with, as a fraction (0.398); kept in the file and checked before training."""
    style: Literal["auto", "pytorch", "caffe"] = "auto"
    """Kind of the pre-trained backbone: pytorch (RGB, unit variance) or caffe (BGR, values of 0 to 255 less the mean,
    stride in the 1x1 convolutions); auto: as the configuration says, else pytorch for mmdet, and for detectron2 caffe
    with ResNet, and for ResNeXt BGR with unit variance."""
    verify: Path | None = None
    """Folder of images, in which the converted detector then finds objects: boxes that lie beside them show a wrong
    setting. The drawn images lie beside the output, in a folder of its name."""
    verify_score: Annotated[float, FRACTION] = 0.3
    """Least score of a box that is drawn, from 0 to 1."""
    verify_images: Annotated[int, POSITIVE] = 20
    """Most images that are drawn, taken evenly from all."""
    data: Literal["auto", "voc", "coco", "yolo"] = "auto"
    """Format of the annotations in --data-root; auto: found by looking there."""
    data_root: Path | None = None
    """Data set whose validation images the converted detector is evaluated on, to print its AP beside the stated."""
    val_split: str = ""
    """Split to evaluate on; empty: found by its name."""
    evaluated_images: Annotated[int, POSITIVE] = 200
    """Most images that are evaluated, taken evenly from all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of --verify and --data-root; auto: the GPU where one is there."""
    relu_before_p7: Literal["auto", "yes", "no"] = "auto"
    """ReLU between RetinaNet's sixth and seventh level; auto: as the configuration says, else no for mmdet and yes for
    detectron2."""
    norm_epsilon: Literal["auto", "default", "none"] = "auto"
    """Epsilon of the backbone's normalisation in torchvision's detectors: default (1e-5), or none in what was trained
    from its COCO_V1; auto: none in those published."""


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, write."""
    options = parse(arguments, "convert", _DESCRIPTION, ConvertConfig(checkpoint=tyro.MISSING, output=tyro.MISSING))
    check_checkpoint(options.checkpoint)
    from gkd_fast.convert import Source, convert_file
    from gkd_fast.detectors.conventions import TORCHVISION

    source = Source(
        library=options.source,
        architecture=options.architecture,
        backbone=options.backbone,
        classes=options.classes,
        config=options.config,
        prefix=options.prefix,
        short_side=options.short_side,
        long_side=options.long_side,
        style=options.style,
        relu_before_p7=options.relu_before_p7,
        norm_epsilon=options.norm_epsilon,
    )
    done = convert_file(options.checkpoint, options.output, source, ap=options.teacher_ap)
    for note in done.notes:
        print(f"{options.checkpoint}: {note}")
    spec, (short, long) = done.spec, done.sides
    print(
        f"{options.output}: {spec.detector} on {spec.backbone or spec.builder}, {len(done.classes)} classes, images "
        f"of {short} to {long} pixels"
    )
    own = dataclasses.asdict(spec.conventions)
    print("conventions: " + ", ".join(f"{n} {v}" for n, v in own.items() if v != getattr(TORCHVISION, n)))
    _verify(options)


def _verify(options: ConvertConfig) -> None:
    """Draw what the converted detector finds, and print what it reaches."""
    from gkd_fast.convert import reached
    from gkd_fast.predict import predict_images
    from gkd_fast.predict.files import find_images
    from gkd_fast.training.precision import resolve_device

    device = resolve_device(options.device)
    if options.verify is not None:
        folder, images = options.output.with_suffix(""), find_images([options.verify])
        chosen = images[:: -(-len(images) // options.verify_images)]
        found = predict_images(options.output, chosen, folder, score=options.verify_score, device=device)
        count = len(found["annotations"])
        print(f"{folder}: {count} boxes drawn in {len(found['images'])} images; they should lie on the objects")
    if options.data_root is not None:
        data = DataConfig(data=options.data, data_root=options.data_root, val_split=options.val_split)
        done = reached(options.output, data, images=options.evaluated_images, device=device)
        stated = "none stated (--teacher-ap)" if done.stated is None else f"stated {done.stated:.3f}"
        print(f"AP {done.figures['AP']:.3f}, AP50 {done.figures['AP50']:.3f} on {done.images} images, {stated}")
