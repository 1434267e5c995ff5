"""``gkd-fast predict``: detections in images, as JSON and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gkd_fast.cli.parsing import parse
from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.errors import InputError
from gkd_fast.predict.files import find_images
from gkd_fast.ranges import FRACTION, POSITIVE

_DESCRIPTION = """Find objects in images with a trained detector. OUTPUT/predictions.json holds all boxes, in pixels of
the original images; beside it lie the images with the boxes drawn."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Prediction with one checkpoint."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, or folders of images (with their subfolders)."""
    checkpoint: Path | None = None
    """Trained detector: model.pt of a run's teacher, student or distilled folder."""
    output: Path = Path("predictions")
    """Folder for predictions.json and the drawn images."""
    score: Annotated[float, FRACTION] = 0.5
    """Least score of a detection, from 0 to 1."""
    draw: bool = True
    """Write the images with the boxes drawn."""
    short_side: Annotated[int | None, POSITIVE] = None
    """Length that the shorter side of an image gets, in pixels; None: as in the detector's training."""
    long_side: Annotated[int | None, POSITIVE] = None
    """Longest that the longer side then is, in pixels; None: as in the detector's training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto: the GPU where one is there."""


def main(arguments: Sequence[str]) -> None:
    """Parse, predict, write."""
    options = parse(arguments, "predict", _DESCRIPTION, PredictConfig())
    if options.checkpoint is None:
        raise InputError("--checkpoint: expected a detector's file, got nothing; --help shows all options")
    images = find_images(options.images)
    check_checkpoint(options.checkpoint)
    from gkd_fast.predict import predict_images
    from gkd_fast.training.precision import resolve_device

    records = predict_images(
        options.checkpoint,
        images,
        options.output,
        score=options.score,
        drawn=options.draw,
        short_side=options.short_side,
        long_side=options.long_side,
        device=resolve_device(options.device),
    )
    print(f"{len(records['annotations'])} boxes in {len(images)} images: {options.output / 'predictions.json'}")
