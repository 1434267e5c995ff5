"""``python -m gkd_fast.convert``: checkpoints of mmdet and detectron2 as teachers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from gkd_fast.cli.command import parse, run_command
from gkd_fast.config import Config, replace, to_dict, with_presets
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.conventions import CONVENTIONS, Conventions
from gkd_fast.detectors.foreign_files import ForeignCheckpoint, read_foreign
from gkd_fast.detectors.imported import extra_levels, imported_state, number_of_classes
from gkd_fast.errors import InputError
from gkd_fast.runs.detector_file import save_detector

_DESCRIPTION = """Turn a Faster R-CNN or a RetinaNet of mmdet (2.x, 3.x) or detectron2, ResNet or ResNeXt with FPN, into
a checkpoint of this program, for --teacher-checkpoint. The result detects what the source detects; what cannot be
taken over is an error. Boxes of libraries before mmdet 2.0, whose widths count one pixel more, are not known."""

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


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
    teacher_ap: float | None = None
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
    options = parse(ConvertConfig, arguments, "gkd_fast.convert", _DESCRIPTION, ConvertConfig(**required))
    if options.teacher_ap is not None and not 0 < options.teacher_ap < 1:
        raise InputError(f"--teacher-ap: expected a fraction such as 0.398, got {options.teacher_ap}")
    foreign = read_foreign(options.checkpoint)
    spec, classes, model = convert(options, foreign)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    config = with_presets(Config(), "voc" if len(classes) == len(_VOC) else "coco")
    config = replace(config, "model", detector=options.architecture)
    save_detector(options.output, model, spec, classes, to_dict(config), ap=options.teacher_ap)
    changed = dataclasses.asdict(spec.conventions)
    conventions = ", ".join(f"{name} {value}" for name, value in changed.items())
    print(f"{options.output}: {options.architecture} of {len(classes)} classes; conventions: {conventions}")


def convert(
    options: ConvertConfig, foreign: ForeignCheckpoint
) -> tuple[DetectorSpec, tuple[str, ...], torch.nn.Module]:
    """The specification, the classes and the detector with the checkpoint's weights.

    Raises:
        InputError: for weights that do not belong to the architecture, or classes of another number.
    """
    origin = str(options.checkpoint)
    number = number_of_classes(foreign.state, options.source, options.architecture, origin)
    classes = _class_names(options.classes or foreign.classes, number)
    spec = DetectorSpec(
        detector=options.architecture,
        backbone=options.backbone,
        freeze_norm=True,
        conventions=_conventions(options, foreign),
    )
    model = build_detector(spec, number)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    state = imported_state(foreign.state, options.source, options.architecture, expected, origin)
    model.load_state_dict(state, strict=True)
    return spec, classes, model.eval()


def _class_names(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    if not names and number == len(_VOC):
        return _VOC
    if not names:
        categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        names = tuple(name for name in categories if name not in ("__background__", "N/A"))
    if len(names) != number:
        raise InputError(f"--classes: expected the checkpoint's {number} names, got {len(names)}")
    return names


def _conventions(options: ConvertConfig, foreign: ForeignCheckpoint) -> Conventions:
    name: str = options.source
    if options.style == "caffe":
        name = {"mmdet": "mmdet-caffe", "detectron2": "detectron2"}[name]
    elif options.source == "detectron2" and options.style == "auto" and options.backbone.startswith("resnext"):
        name = "detectron2-resnext"
    changes: dict[str, Any] = {}
    if options.source == "detectron2" and options.style == "pytorch":
        changes = {"bgr": False, "stride_in_1x1": False, "image_std": CONVENTIONS["torchvision"].image_std}
    if options.source == "mmdet":
        described = _described(foreign.description)
        changes = described if options.style == "auto" else {k: v for k, v in described.items() if "relu" in k}
    if options.relu_before_p7 != "auto":
        changes["relu_before_p7"] = options.relu_before_p7 == "yes"
    if options.architecture == "retinanet":
        changes["extra_levels"] = extra_levels(foreign.state, options.source)
    return dataclasses.replace(CONVENTIONS[name], **changes)


def _described(text: str) -> dict[str, Any]:
    """What the text of an mmdet configuration says."""
    flat = re.sub(r"\s", "", text)
    said: dict[str, Any] = {}
    if style := re.search(r"style='(caffe|pytorch)'", flat):
        said["stride_in_1x1"] = style[1] == "caffe"
    if order := re.search(r"to_rgb=(True|False)", flat):
        said["bgr"] = order[1] == "False"
    for name in ("mean", "std"):
        if values := re.search(rf"\b{name}=\[([\d.]+),([\d.]+),([\d.]+)\]", flat):
            numbers = tuple(float(value) for value in values.groups())
            said[f"image_{name}"] = numbers[::-1] if said.get("bgr") else numbers
    if relu := re.search(r"relu_before_extra_convs=(True|False)", flat):
        said["relu_before_p7"] = relu[1] == "True"
    return said


if __name__ == "__main__":
    run_command(main)
