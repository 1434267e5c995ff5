"""Data sets, and the way from one to batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gkd_fast.data.annotated import AnnotatedImages, Detectable, Target
from gkd_fast.data.coco import CocoDetection
from gkd_fast.data.loader import EpochSampler, build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.data.scenes import CONDITIONS, Scenes
from gkd_fast.data.voc import VocDetection
from gkd_fast.errors import InputError

__all__ = [
    "CONDITIONS",
    "KINDS",
    "AnnotatedImages",
    "CocoDetection",
    "Detectable",
    "EpochSampler",
    "PreparedDataset",
    "Scenes",
    "Target",
    "VocDetection",
    "build_dataset",
    "build_loader",
]

KINDS = ("scenes", "voc", "coco")


def build_dataset(
    kind: str,
    root: str | Path | None,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    scenes_count: int = 1000,
    scenes_size: tuple[int, int] = (192, 192),
    seed: int = 0,
) -> Detectable:
    """Opens and checks a data set.

    Args:
        kind: one of KINDS.
        root: folder of a VOC or COCO data set; not used by scenes.
        split: name of the part, such as train2017 or trainval; scenes of different splits never coincide.
        classes: names in label order (give those of the training split to other splits). Default: read from the data.
        scenes_count: number of scenes.
        scenes_size: (height, width) of a scene in pixels.
        seed: seed of the scenes.

    Raises:
        InputError: the folder or a file in it cannot be used, or the classes are not those of the scenes.
    """
    if kind not in KINDS:
        raise InputError(f"data: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "scenes":
        if classes and tuple(classes) != Scenes.classes:
            raise InputError(f"classes: expected those of the scenes, {', '.join(Scenes.classes)}")
        return Scenes(scenes_count, size=scenes_size, seed=_split_seed(seed, split))
    if root is None:
        raise InputError(f"data root: expected the folder of the {kind} data set, got none")
    return (VocDetection if kind == "voc" else CocoDetection)(root, split, classes=classes)


def _split_seed(seed: int, split: str) -> int:
    return int(np.random.SeedSequence((seed, *split.encode())).generate_state(1)[0])
