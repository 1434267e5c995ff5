"""Checks that folders of images and annotations share."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gkd_fast.data.annotated import Record
from gkd_fast.data.images import check_image
from gkd_fast.errors import InputError

# Annotation tools disagree on where pixels begin and round differently; further out is a mistake.
_TOLERANCE = 1.0
# Opening many small files waits for the disk more than for the processor.
_THREADS = 8


def require_folder(path: Path) -> Path:
    """The folder itself. InputError if it is none."""
    if not path.is_dir():
        raise InputError(f"{path}: expected a folder, found {'a file' if path.exists() else 'nothing'}")
    return path


def select_classes(found: Sequence[str], wanted: Sequence[str] | None, source: Path) -> tuple[str, ...]:
    """The classes to detect: the wanted ones in the order given, or all those found in the data.

    Raises:
        InputError: a wanted class that the data do not have, or a name that occurs twice.
    """
    selected = tuple(wanted or found)
    for name in selected:
        if name not in found:
            raise InputError(f"{source}: unknown class {name!r}, expected one of {', '.join(found)}")
    if len(set(selected)) < len(selected):
        raise InputError(f"{source}: expected each class once, got {', '.join(selected)}")
    return selected


def check_images(paths: Sequence[Path], sizes: Sequence[tuple[int, int] | None]) -> list[tuple[int, int]]:
    """(height, width) of every image file, each looked at as in `check_image`.

    Args:
        paths: image files.
        sizes: (height, width) that the annotations state, None where they do not.

    Raises:
        InputError: a file that is missing, broken, or of another size than stated.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        actual = list(pool.map(check_image, paths))
    for path, size, stated in zip(paths, actual, sizes, strict=True):
        if stated is not None and stated != size:
            raise InputError(
                f"{path}: expected {stated[1]} x {stated[0]} pixels as its annotation says, got {size[1]} x {size[0]}"
            )
    return actual


def fit_boxes(boxes: np.ndarray, size: tuple[int, int], *, source: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes (float [B,4] XYXY in pixels) that leave an image of `size` (h, w) by at most 1 pixel.

    Returns:
        The clipped boxes, float32 [B,4], and which of them have an area, bool [B].

    Raises:
        InputError: a box is not finite, lies further out or has its corners swapped; names `source` and the box.
    """
    height, width = size
    limit = np.array([width, height, width, height], dtype=np.float32)
    # Written so that NaN fails as well.
    inside = ((boxes >= -_TOLERANCE) & (boxes <= limit + _TOLERANCE)).all(1)
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all(1)
    for good, expected in (
        (inside, f"boxes inside the image of {width} x {height} pixels"),
        (ordered, "boxes with x1 <= x2 and y1 <= y2"),
    ):
        if not good.all():
            x1, y1, x2, y2 = boxes[int(np.argmin(good))].tolist()
            raise InputError(f"{source}: expected {expected}, got x {x1:g} to {x2:g}, y {y1:g} to {y2:g} (from 0)")
    fitted = np.clip(boxes, 0, limit).astype(np.float32)
    return fitted, (fitted[:, :2] < fitted[:, 2:]).all(1)


def require_boxes(records: Sequence[Record], source: str | Path) -> None:
    """InputError naming `source` unless there is at least one box to learn from."""
    if not any((~record.ignored).any() for record in records):
        raise InputError(f"{source}: expected at least one box to detect in {len(records)} images, found none")
