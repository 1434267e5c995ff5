"""What the libraries' scripts have in common: the images, and what is written of their detections."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np

NAMES3 = ("alpha", "beta", "gamma")


def _pictures() -> tuple[int, int, dict[str, np.ndarray]]:
    """Short and long side in testing, and RGB images uint8 [H,W,3]: drawn ones, or the photographs in GKD_PHOTOS.

    The first is one which no library resizes, and which all pad.
    """
    folder = os.environ.get("GKD_PHOTOS")
    if not folder:
        return 192, 320, {"exact": networks.picture(192, 280), "reduced": networks.picture(300, 430)}
    from PIL import Image

    photos = {path.stem: Image.open(path).convert("RGB") for path in sorted(Path(folder).iterdir())}
    first = next(iter(photos.values()))
    scale = min(800 / min(first.size), 1333 / max(first.size))
    exact = first.resize(tuple(int(side * scale + 0.5) for side in first.size))
    return 800, 1333, {name: np.array(image) for name, image in {"exact": exact, **photos}.items()}


SHORT, LONG, PICTURES = _pictures()
Found = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def write(folder: Path, found: Found, shapes: dict[str, tuple[int, ...]], factors: dict[str, float]) -> None:
    """Boxes float32 [n,4] in pixels of each picture, scores [n] and labels [n] from 0, beside the network."""
    arrays = {
        f"{key}_{part}": value.astype(kind)
        for key, values in found.items()
        for part, value, kind in zip(
            ("boxes", "scores", "labels"), values, (np.float32, np.float32, np.uint8), strict=True
        )
    }
    networks.save(folder / "theirs.npz", shapes, factors, **arrays)
    print(folder.name, {key: len(values[1]) for key, values in found.items()}, end=" ")


def read(path: Path) -> Found:
    """The detections in a file that `write` has written."""
    _, _, arrays = networks.load(path)
    return {key: tuple(arrays[f"{key}_{part}"] for part in ("boxes", "scores", "labels")) for key in PICTURES}


def run(make: Callable[[str, Path], None]) -> None:
    """``SCRIPT FOLDER NAME ...``: `make` each named case in a folder of its own."""
    for case in sys.argv[2:]:
        place = Path(sys.argv[1]) / case
        place.mkdir(parents=True, exist_ok=True)
        make(case, place)
        print(case, flush=True)


def without_downloads(values: Any) -> None:
    """Take the pre-trained starting points out of an mmdet configuration."""
    if isinstance(values, dict):
        start = values.get("init_cfg")
        if isinstance(start, dict) and start.get("type") == "Pretrained":
            values["init_cfg"] = None
        values = list(values.values())
    for value in values if isinstance(values, list) else []:
        without_downloads(value)
