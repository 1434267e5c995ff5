"""Settings of the images and annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gkd_fast.options import MAIN
from gkd_fast.ranges import FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and annotations."""

    data: Annotated[Literal["scenes", "voc", "coco"], MAIN] = "scenes"
    """Kind of data set: embedded drawn scenes, a PASCAL VOC folder, or a COCO folder."""
    data_root: Annotated[Path | None, MAIN] = None
    """Folder of the data set (voc: holds Annotations, JPEGImages, ImageSets; coco: holds annotations)."""
    train_split: Annotated[str, MAIN] = "train"
    """Split to train on (voc: ImageSets/Main/SPLIT.txt, or FOLDER/SPLIT for a folder in the root, several joined by
    "+"; coco: annotations/instances_SPLIT.json)."""
    val_split: Annotated[str, MAIN] = "val"
    """Split to evaluate on."""
    classes: Annotated[tuple[str, ...], MAIN] = ()
    """Class names to detect, in order; empty: all classes of the data."""
    short_side: Annotated[int, POSITIVE, MAIN] = 128
    """Length to which the short side of an image is resized, in pixels."""
    long_side: Annotated[int, POSITIVE, MAIN] = 320
    """Upper limit for the long side after resizing, in pixels."""
    flip: Annotated[float, FRACTION] = 0.5
    """Probability of a horizontal flip in training."""
    cache: bool = True
    """Keep resized images in memory as uint8 (3 bytes a pixel)."""
    workers: Annotated[int, NOT_NEGATIVE] = 0
    """Worker processes that load images; 0 loads in the training process."""
    prefetch: Annotated[int, POSITIVE] = 2
    """Batches that every worker process holds ready."""
    size_buckets: Annotated[int, POSITIVE] = 4
    """Most sizes to which batches are padded, and so most graphs of a compiled part of a network; images of alike
    shape share a batch."""
    scenes_train: Annotated[int, POSITIVE] = 640
    """Number of training images of the scenes data set."""
    scenes_val: Annotated[int, POSITIVE] = 160
    """Number of validation images of the scenes data set."""
