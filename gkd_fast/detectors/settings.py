"""Settings of teacher and student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gkd_fast.errors import InputError
from gkd_fast.options import MAIN, PREFIX, UNNAMED
from gkd_fast.ranges import POSITIVE, Range

AP = Range("a fraction such as 0.398", lambda ap: 0 < ap < 1)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """One of the two networks."""

    backbone: Annotated[str, UNNAMED, MAIN]
    """Backbone, a torchvision model name (resnet101, convnext_tiny, swin_t, ...)."""
    width: Annotated[float, POSITIVE] = 1.0
    """Backbone's width multiplier, where it has one (mobilenet, mnasnet)."""
    weights: Annotated[str, MAIN] = ""
    """Weights from torchvision: of the backbone (IMAGENET1K_V1, DEFAULT) or of a whole detector
    (FasterRCNN_ResNet50_FPN_Weights.COCO_V1, which also sets the architecture); empty: random."""
    checkpoint: Annotated[Path | None, MAIN] = None
    """Checkpoint of this program to take instead; a teacher is then not trained, a student starts from it, alone and
    distilled."""
    channels: Annotated[int, POSITIVE]
    """Feature pyramid's number of channels."""
    head: Annotated[int, POSITIVE]
    """Box head's width (Faster R-CNN), in units."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Teacher and student networks, and what both share."""

    detector: Annotated[Literal["faster_rcnn", "retinanet"], MAIN] = "faster_rcnn"
    """Detector of teacher and student."""
    teacher: Annotated[NetworkConfig, PREFIX] = NetworkConfig(backbone="resnet18", channels=64, head=256)
    student: Annotated[NetworkConfig, PREFIX] = NetworkConfig(
        backbone="mobilenet_v2", width=0.35, channels=48, head=128
    )
    teacher_ap: Annotated[float | None, AP] = None
    """COCO AP that a given teacher reaches on the validation images, as a fraction (0.398); far less on a sample of
    them stops the run. None: as its checkpoint, its run or torchvision says, if they do."""
    conventions: Literal["torchvision", "mmdet", "mmdet-caffe", "detectron2", "detectron2-resnext"] = "torchvision"
    """Whose conventions the detectors follow (input, anchors, RoIAlign, RetinaNet's extra levels); a finished teacher
    keeps its own. For one-stage detectors the student's anchors should be the teacher's."""
    anchor_size: Annotated[int, POSITIVE] = 12
    """Side of the smallest anchors, in pixels; it doubles with every pyramid level."""
    pyramid_norm: bool = True
    """Batch normalisation in the feature pyramid, which training from random weights needs."""
    freeze_norm: bool = False
    """Keep batch normalisation at the loaded statistics (for pre-trained backbones and tiny batches)."""
    proposals: Annotated[int, POSITIVE] = 300
    """Proposals an image that the region proposal network keeps."""
    rois: Annotated[int, POSITIVE] = 64
    """Proposals an image that the box head is trained on."""
    detections: Annotated[int, POSITIVE] = 100
    """Most detections an image."""


OFFERED = {
    "two_stage": frozenset({"anchors", "logits", "proposals"}),
    "one_stage": frozenset({"anchors", "logits", "crossed heads"}),
}
"""What a detector has for the methods (`gkd_fast.methods.Setup.offered`), by its stage."""


def check_checkpoint(path: Path) -> None:
    """Check that a checkpoint is there.

    Raises:
        InputError: naming it.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint file, found {'a folder' if path.is_dir() else 'none'}")
