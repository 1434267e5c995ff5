"""Checkpoints of mmdet, detectron2 and torchvision as checkpoints of this program."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from gkd_fast.config import replace, to_dict
from gkd_fast.convert import detectron2, mmdet
from gkd_fast.convert.configuration import read_python, read_python_file, read_yaml
from gkd_fast.convert.description import Description
from gkd_fast.convert.recognition import SUPPORTED, Recognised, recognise
from gkd_fast.convert.stored import check_stored
from gkd_fast.convert.torchvision import torchvision_detector
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.conventions import CONVENTIONS, Conventions
from gkd_fast.detectors.foreign_files import ForeignCheckpoint, read_foreign
from gkd_fast.detectors.imported import AnchorOutputs, extra_levels, imported_state, renamed_state
from gkd_fast.errors import InputError
from gkd_fast.presets import from_presets
from gkd_fast.runs.detector_file import save_detector

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SIDES = (800, 1333)  # of all three libraries' own configurations for COCO


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a checkpoint comes from and what it holds.

    Attributes:
        library: that wrote it; auto: as its weights say.
        architecture: detector; auto: as its weights say.
        backbone: its torchvision name; empty: as its weights say.
        classes: in the checkpoint's order; empty: those that the file names, else COCO's 80 or VOC's 20.
        config: the configuration, mmdet's .py or detectron2's .yaml; None: the one in the file, if there is one.
        prefix: that the wanted network's weights are named with, such as ``student.``; empty: none.
        short_side, long_side: to which its library resizes images, in pixels; None: as the configuration says.
        style: kind of the pre-trained backbone; auto: as the configuration says, else by the library and the backbone.
        relu_before_p7: ReLU between RetinaNet's sixth and seventh level; auto: as the configuration says, else by the
            library.
        norm_epsilon: of the backbone's normalisation in torchvision's detectors: default (1e-5) or none; auto: none in
            those published as COCO_V1.
    """

    library: Literal["auto", "mmdet", "detectron2", "torchvision"] = "auto"
    architecture: Literal["auto", "faster_rcnn", "retinanet"] = "auto"
    backbone: str = ""
    classes: tuple[str, ...] = ()
    config: Path | None = None
    prefix: str = ""
    short_side: int | None = None
    long_side: int | None = None
    style: Literal["auto", "pytorch", "caffe"] = "auto"
    relu_before_p7: Literal["auto", "yes", "no"] = "auto"
    norm_epsilon: Literal["auto", "default", "none"] = "auto"


@dataclass(frozen=True)
class Converted:
    """A converted detector.

    Attributes:
        spec: its specification.
        classes: names, labels from 1.
        model: torchvision's detector with the weights, in evaluation mode.
        sides: short side, and longest long side, of its images, in pixels.
        notes: what was left out or taken for granted, a sentence each.
    """

    spec: DetectorSpec
    classes: tuple[str, ...]
    model: torch.nn.Module
    sides: tuple[int, int]
    notes: tuple[str, ...]


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
    done = convert(read_foreign(path), source, str(path))
    config = from_presets("voc" if len(done.classes) == len(VOC_CLASSES) else "coco")
    config = replace(config, "model", detector=done.spec.detector)
    config = replace(config, "data", short_side=done.sides[0], long_side=done.sides[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    save_detector(output, done.model, done.spec, done.classes, to_dict(config), ap=ap)
    return done


def convert(foreign: ForeignCheckpoint, source: Source, origin: str) -> Converted:
    """The detector with the checkpoint's weights.

    Args:
        foreign: content of the file.
        source: what is known of it.
        origin: name of the file, for messages.

    Raises:
        InputError: one line, for what is not supported and for classes of another number.
    """
    found = recognise(foreign.state, source.prefix, origin)
    if found.library == "mmdet" and foreign.version.startswith(("0.", "1.")):
        raise InputError(f"{origin}: of mmdet {foreign.version}, whose boxes count one pixel more; expected 2.x or 3.x")
    _check_said(source, found, origin)
    if found.library == "torchvision":
        if source.config:
            raise InputError("--config: torchvision's checkpoints have none; expected no option")
        spec, names, model, notes = torchvision_detector(
            found, source.classes, source.short_side, source.norm_epsilon, origin
        )
        notes = (*foreign.notes, *found.notes, *notes)
        sides = (320, 640) if "320" in spec.builder else None
        return Converted(spec, names, model.eval(), _sides(source, sides), notes)
    if source.norm_epsilon != "auto":
        raise InputError(f"--norm-epsilon: torchvision's detectors alone have it, got one of {found.library}")
    described = _described(foreign, source, found)
    conventions = _conventions(source, found, described)
    conventions, stored = check_stored(found.state, conventions, described, origin)
    spec, model, number = _built(found, source, described, conventions, origin)
    names, guess = _class_names(source.classes, foreign.classes, number, origin)
    notes = (*foreign.notes, *found.notes, *described.notes, *stored, *guess)
    return Converted(spec, names, model.eval(), _sides(source, described.sides), notes)


def _check_said(source: Source, found: Recognised, origin: str) -> None:
    said = (
        ("--source", "" if source.library == "auto" else source.library, found.library),
        ("--architecture", "" if source.architecture == "auto" else source.architecture, found.detector),
        ("--backbone", source.backbone, found.backbone or source.backbone),
    )
    for option, given, real in said:
        if given and given != real:
            raise InputError(f"{origin}: weights of {real}, not of {option} {given}")
    if not (found.backbone or source.backbone or found.library == "torchvision"):
        raise InputError(f"{origin}: {found.blocks}; {SUPPORTED}; --backbone names one of torchvision's")


def _described(foreign: ForeignCheckpoint, source: Source, found: Recognised) -> Description:
    """What the configuration says: the option's, else the one in the file."""
    if found.library == "detectron2":
        if source.config is None:
            shown = "800 and 1333 pixels, BGR, anchors of 32 to 512 pixels"
            return Description(by_size=True, notes=[f"no configuration: detectron2's own assumed ({shown}); --config"])
        if source.config.suffix not in (".yaml", ".yml"):
            raise InputError(f"--config: expected detectron2's config.yaml, got {source.config}")
        return detectron2.describe(read_yaml(source.config), found.detector, str(source.config))
    if source.config is not None:
        if source.config.suffix != ".py" or not source.config.is_file():
            raise InputError(f"--config: expected mmdet's configuration, a .py file, got {source.config}")
        config = read_python_file(source.config)
        config = mmdet.inner(config, source.prefix) if source.prefix else config
        return mmdet.describe(config, found.detector, str(source.config))
    origin = "the configuration in the checkpoint"
    config = read_python(foreign.description, f"{origin} (--config reads another)")
    if source.prefix:
        config = mmdet.inner(config, source.prefix)
    if mmdet.is_detector(config):
        return mmdet.describe(config, found.detector, origin)
    what = "a configuration of no detector" if config else "no configuration"
    return Description(notes=[f"{what}: mmdet's own for COCO assumed (800 and 1333 pixels); --config reads one"])


def _conventions(source: Source, found: Recognised, described: Description) -> Conventions:
    name: str = found.library
    if source.style == "caffe":
        name = {"mmdet": "mmdet-caffe", "detectron2": "detectron2"}[name]
    elif found.library == "detectron2" and source.style == "auto" and found.backbone.startswith("resnext"):
        name = "detectron2-resnext"
    changes = dict(described.conventions)
    if source.style != "auto":
        for field in ("bgr", "image_mean", "image_std", "stride_in_1x1"):
            changes.pop(field, None)
        if found.library == "detectron2" and source.style == "pytorch":
            changes |= {"bgr": False, "stride_in_1x1": False, "image_std": CONVENTIONS["torchvision"].image_std}
    if source.relu_before_p7 != "auto":
        changes["relu_before_p7"] = source.relu_before_p7 == "yes"
    if found.detector == "retinanet":
        renamed = renamed_state(found.state, found.library, found.detector)
        changes.setdefault("extra_levels", extra_levels(renamed))
    return dataclasses.replace(CONVENTIONS[name], **changes)


def _built(
    found: Recognised, source: Source, described: Description, conventions: Conventions, origin: str
) -> tuple[DetectorSpec, torch.nn.Module, int]:
    """The specification, the detector with the weights, and its number of classes."""
    state = renamed_state(found.state, found.library, found.detector)
    outputs, offsets = _class_outputs(state, found, origin)
    sizes = len(conventions.anchor_sizes[0]) if conventions.anchor_sizes else _SIZES[found.detector]
    anchors = AnchorOutputs(sizes, len(conventions.anchor_ratios), described.by_size)
    if anchors.sizes * anchors.ratios != offsets:
        raise InputError(
            f"{origin}: {offsets} anchors a cell, expected {anchors.sizes * anchors.ratios} (sizes {anchors.sizes}, "
            f"ratios {list(conventions.anchor_ratios)}); --config says which they are"
        )
    number = outputs - 1 if found.detector == "faster_rcnn" else outputs // offsets
    if described.classes:
        described.classes.check(number, f"{number} classes")
    depth = re.match(r"(?:wide_)?resnex?t(\d+)", found.backbone)
    if described.depth and depth:
        described.depth.check(int(depth[1]), found.backbone)
    shapes: dict[str, Any] = {}
    for field, name in (
        ("channels", "backbone.fpn.inner_blocks.0.0.weight"),
        ("head", "roi_heads.box_head.fc6.weight"),
    ):
        if name in state:
            shapes[field] = state[name].shape[0]
    spec = DetectorSpec(
        detector=found.detector,
        backbone=source.backbone or found.backbone,
        freeze_norm=True,
        conventions=conventions,
        **shapes,
        **described.spec,
    )
    model = build_detector(spec, number)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict(imported_state(found.state, found.library, found.detector, expected, anchors, origin))
    return spec, model, number


_WIDTHS = {"channels": "backbone.fpn.inner_blocks.0.0.weight", "head": "roi_heads.box_head.fc6.weight"}
_SIZES = {"faster_rcnn": 1, "retinanet": 3}
_OUTPUTS = {
    "faster_rcnn": ("roi_heads.box_predictor.cls_score.bias", "rpn.head.bbox_pred.bias"),
    "retinanet": ("head.classification_head.cls_logits.bias", "head.regression_head.bbox_reg.bias"),
}


def _class_outputs(state: dict[str, Tensor], found: Recognised, origin: str) -> tuple[int, int]:
    """The number of class outputs, and of anchors a cell."""
    names = _OUTPUTS[found.detector]
    for name in names:
        if name not in state:
            raise InputError(
                f"{origin}: a {found.library} {found.detector} without the outputs of its head; {SUPPORTED}"
            )
    return len(state[names[0]]), len(state[names[1]]) // 4


def _class_names(
    given: tuple[str, ...], named: tuple[str, ...], number: int, origin: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names, and what was taken for granted."""
    if given and len(given) != number:
        raise InputError(f"--classes: expected the checkpoint's {number} names, got {len(given)}")
    if given:
        return given, ()
    if named and len(named) != number:
        raise InputError(
            f"{origin}: weights of {number} classes, but the file names {len(named)}; --classes gives the real names"
        )
    if named:
        return named, ()
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    coco = tuple(name for name in categories if name not in ("__background__", "N/A"))
    for whose, names in (("COCO", coco), ("VOC", VOC_CLASSES)):
        if len(names) == number:
            return names, (f"no class names in the file: {whose}'s {number} assumed; --classes gives others",)
    raise InputError(f"{origin}: {number} classes without names; --classes gives them, in the order of its training")


def _sides(source: Source, described: tuple[int, int] | None) -> tuple[int, int]:
    short, long = described or SIDES
    short, long = source.short_side or short, source.long_side or long
    if long < short:
        raise InputError(f"--long-side: expected at least the short side {short}, got {long}")
    return short, long
