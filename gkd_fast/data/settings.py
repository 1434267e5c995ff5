"""Settings of the images and annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gkd_fast.errors import InputError
from gkd_fast.options import MAIN
from gkd_fast.ranges import FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and annotations."""

    data: Annotated[Literal["auto", "scenes", "voc", "coco", "yolo", "objects"], MAIN] = "auto"
    """Kind of data set: embedded drawn scenes, or the format of the annotations in --data-root; auto: found by
    looking there, scenes where no root is given; objects: given from Python."""
    data_root: Annotated[Path | None, MAIN] = None
    """Folder of the data set, or a file that describes it (data.yaml). `gkd-fast inspect` shows what is read."""
    train_split: Annotated[str, MAIN] = ""
    """Split to train on; several are joined by "+"; voc: also a text file of image names. Empty: found by its name."""
    val_split: Annotated[str, MAIN] = ""
    """Split to evaluate on; empty: found by its name."""
    val_fraction: Annotated[float, FRACTION, MAIN] = 0.0
    """Part of the training images that is kept for evaluation, drawn by the seed; 0: a fifth where there is no split
    to evaluate on."""
    val_seed: Annotated[int | None, NOT_NEGATIVE] = None
    """Seed of that draw; none: --seed."""
    train_annotations: Path | None = None
    """COCO file of any name to train on, instead of a split."""
    train_images: Path | None = None
    """Folder of its images; none: found near the file."""
    val_annotations: Path | None = None
    """COCO file of any name to evaluate on."""
    val_images: Path | None = None
    """Folder of its images; none: that of the training images."""
    classes: Annotated[tuple[str, ...], MAIN] = ()
    """Class names to detect, in order; empty: all classes of the data, in a given teacher's order."""
    grey_levels: Annotated[float, NOT_NEGATIVE] = 0.0
    """Values of grey images with more than 8 bits run from 0 to below this (4096: 12 bit; 1: 0 to 1); 0: found from
    the training images."""
    short_side: Annotated[int, POSITIVE, MAIN] = 128
    """Length to which the short side of an image is resized, in pixels."""
    long_side: Annotated[int, POSITIVE, MAIN] = 320
    """Upper limit for the long side after resizing, in pixels."""
    flip: Annotated[float, FRACTION] = 0.5
    """Probability of a horizontal flip in training."""
    teacher_noise: Literal["none", "blur", "occlusion", "swap"] = "none"
    """Damage planted in what the teacher sees of some training instances while it distils, to test whether the robust
    weights find it: blurred, half covered, or showing an instance of another class. The student sees all as it is."""
    teacher_noise_share: Annotated[float, FRACTION] = 0.1
    """Part of the instances that is damaged."""
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


def check_root(root: Path) -> None:
    """Check that a data set's folder is there.

    Raises:
        InputError: naming it.
    """
    if not root.exists():
        raise InputError(f"{root}: expected a folder, found nothing")
