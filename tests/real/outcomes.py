"""What the libraries' scripts have in common: the images, and what is written of their detections."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np

SHORT, LONG = 192, 320
NAMES3 = ("alpha", "beta", "gamma")
PICTURES = {
    "exact": networks.picture(SHORT, 280),  # which no library resizes, and all pad
    "reduced": networks.picture(300, 430),
}
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
