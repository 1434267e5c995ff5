"""A converted checkpoint beside its library: ``python comparison.py FOLDER ...`` prints a line of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from outcomes import LONG, NAMES3, PICTURES, SHORT, Found, read
from torch import nn

from gkd_fast.config import from_dict
from gkd_fast.convert import Converted, Source, convert_file
from gkd_fast.errors import InputError
from gkd_fast.evaluation.one_image import detect_image
from gkd_fast.runs.detector_file import load_detector

PIXELS, SCORES = 0.02, 1e-4


@dataclass(frozen=True)
class Agreement:
    """Of one image.

    Attributes:
        theirs, ours: numbers of detections with an area.
        matched: of theirs that have one of ours of the same class within 0.02 pixels and 1e-4 of the score.
        pixels, score: largest differences of those.
    """

    theirs: int
    ours: int
    matched: int
    pixels: float
    score: float

    @property
    def whole(self) -> bool:
        return self.theirs == self.ours == self.matched > 0


def compared(theirs: Found, ours: Found) -> dict[str, Agreement]:
    """The agreement on every image."""
    return {key: _agreement(_with_area(theirs[key]), _with_area(ours[key])) for key in theirs}


def _with_area(found: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    keep = (found[0][:, 2:] > found[0][:, :2]).all(1)
    return tuple(part[keep] for part in found)


def _agreement(theirs: tuple[np.ndarray, ...], ours: tuple[np.ndarray, ...]) -> Agreement:
    apart = np.abs(theirs[0][:, None] - ours[0][None]).max(-1, initial=0)
    scores = np.abs(theirs[1][:, None] - ours[1][None])
    near = (apart <= PIXELS) & (scores <= SCORES) & (theirs[2][:, None] == ours[2][None])
    free, pairs = np.ones(len(ours[1]), bool), []
    for row in range(len(near)):
        candidates = np.flatnonzero(near[row] & free)
        if len(candidates):
            best = candidates[np.argmin(apart[row, candidates])]
            free[best] = False
            pairs.append((apart[row, best], scores[row, best]))
    worst = np.array(pairs).max(0) if pairs else (np.nan, np.nan)
    return Agreement(len(near), len(free), len(pairs), float(worst[0]), float(worst[1]))


def detections(checkpoint: Path) -> Found:
    """What a converted checkpoint finds in the images."""
    trained = load_detector(checkpoint)
    data = from_dict(trained.config).data
    return found_by(trained.build().eval(), (data.short_side, data.long_side), trained.spec.conventions.resize)


def found_by(model: nn.Module, sides: tuple[int, int], rule: str) -> Found:
    """What a detector finds in the images, labels from 0."""
    found = {}
    for key, image in PICTURES.items():
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        result = detect_image(model, pixels, short_side=sides[0], long_side=sides[1], rule=rule)
        found[key] = (result["boxes"].numpy(), result["scores"].numpy(), result["labels"].numpy() - 1)
    return found


def converted(folder: Path) -> Converted:
    """The conversion of a case's checkpoint, with its configuration where the checkpoint holds none."""
    checkpoint = next(path for path in sorted(folder.iterdir()) if path.stem in ("checkpoint", "model_final"))
    config = folder / "config.yaml"
    given = {"config": config} if config.is_file() else {}
    if checkpoint.stem == "model_final":  # detectron2's say nothing of sizes and names
        own_names = "c3" in folder.name or "vector" in folder.name
        given |= {"short_side": SHORT, "long_side": LONG} if not given else {}
        given |= {"classes": NAMES3} if own_names else {}
    return convert_file(checkpoint, folder / "converted.pt", Source(**given))


def main(folders: list[Path]) -> None:
    for folder in folders:
        try:
            done = converted(folder)
        except InputError as error:
            print(f"refused {folder.name}: {error}", flush=True)
            continue
        rows = compared(read(folder / "theirs.npz"), detections(folder / "converted.pt"))
        cells = [
            f"{key} {row.matched} of {row.theirs} (ours {row.ours}), {row.pixels:.4f} px, {row.score:.1e}"
            for key, row in rows.items()
        ]
        good = all(row.whole for row in rows.values())
        print(
            f"{'ok ' if good else 'BAD'} {folder.name} [{done.spec.backbone or done.spec.builder}]: {'; '.join(cells)}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([Path(name) for name in sys.argv[1:]])
