"""Checkpoints of mmdet and detectron2 as checkpoints of this program."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from gkd_fast.config import replace, to_dict
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.conventions import CONVENTIONS, Conventions
from gkd_fast.detectors.foreign_files import ForeignCheckpoint, read_foreign
from gkd_fast.detectors.imported import extra_levels, imported_state, number_of_classes
from gkd_fast.errors import InputError
from gkd_fast.presets import from_presets
from gkd_fast.runs.detector_file import save_detector

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a checkpoint comes from and what it holds.

    Attributes:
        library: that wrote it.
        architecture: detector.
        backbone: its torchvision name.
        classes: in the checkpoint's order; empty: those that the file names, else COCO's 80 or VOC's 20.
        style: kind of the pre-trained backbone; auto: as the file says, else by the library and the backbone.
        relu_before_p7: ReLU between RetinaNet's sixth and seventh level; auto: as the file says, else by the library.
    """

    library: Literal["mmdet", "detectron2"]
    architecture: Literal["faster_rcnn", "retinanet"]
    backbone: str
    classes: tuple[str, ...] = ()
    style: Literal["auto", "pytorch", "caffe"] = "auto"
    relu_before_p7: Literal["auto", "yes", "no"] = "auto"


@dataclass(frozen=True)
class Converted:
    """The network that was written, and its classes."""

    spec: DetectorSpec
    classes: tuple[str, ...]


def convert_file(path: Path, output: Path, source: Source, *, ap: float | None = None) -> Converted:
    """Turn a file of another library into a checkpoint of this program.

    Args:
        path: the file; pickled code in it is not run.
        output: file to write, its folder made here.
        source: what the file holds.
        ap: COCO AP that it is published with, as a fraction, kept in the file.

    Raises:
        InputError: for a file that cannot be read, and for what cannot be taken over.
    """
    spec, classes, model = convert(read_foreign(path), source, str(path))
    output.parent.mkdir(parents=True, exist_ok=True)
    config = from_presets("voc" if len(classes) == len(VOC_CLASSES) else "coco")
    config = replace(config, "model", detector=source.architecture)
    save_detector(output, model, spec, classes, to_dict(config), ap=ap)
    return Converted(spec, classes)


def convert(
    foreign: ForeignCheckpoint, source: Source, origin: str
) -> tuple[DetectorSpec, tuple[str, ...], torch.nn.Module]:
    """The specification, the classes and the detector with the checkpoint's weights.

    Args:
        foreign: content of the file.
        source: what it is said to hold.
        origin: name of the file, for messages.

    Raises:
        InputError: for weights that do not belong to the architecture, or classes of another number.
    """
    number = number_of_classes(foreign.state, source.library, source.architecture, origin)
    classes = _class_names(source.classes or foreign.classes, number)
    spec = DetectorSpec(
        detector=source.architecture,
        backbone=source.backbone,
        freeze_norm=True,
        conventions=_conventions(source, foreign),
    )
    model = build_detector(spec, number)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    state = imported_state(foreign.state, source.library, source.architecture, expected, origin)
    model.load_state_dict(state, strict=True)
    return spec, classes, model.eval()


def _class_names(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    if not names and number == len(VOC_CLASSES):
        return VOC_CLASSES
    if not names:
        categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        names = tuple(name for name in categories if name not in ("__background__", "N/A"))
    if len(names) != number:
        raise InputError(f"--classes: expected the checkpoint's {number} names, got {len(names)}")
    return names


def _conventions(source: Source, foreign: ForeignCheckpoint) -> Conventions:
    name: str = source.library
    if source.style == "caffe":
        name = {"mmdet": "mmdet-caffe", "detectron2": "detectron2"}[name]
    elif source.library == "detectron2" and source.style == "auto" and source.backbone.startswith("resnext"):
        name = "detectron2-resnext"
    changes: dict[str, Any] = {}
    if source.library == "detectron2" and source.style == "pytorch":
        changes = {"bgr": False, "stride_in_1x1": False, "image_std": CONVENTIONS["torchvision"].image_std}
    if source.library == "mmdet":
        described = _described(foreign.description)
        changes = described if source.style == "auto" else {k: v for k, v in described.items() if "relu" in k}
    if source.relu_before_p7 != "auto":
        changes["relu_before_p7"] = source.relu_before_p7 == "yes"
    if source.architecture == "retinanet":
        changes["extra_levels"] = extra_levels(foreign.state, source.library)
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
