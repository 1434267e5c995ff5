"""A converted detector on annotated images: what it reaches there beside what it is published with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_fast.config import Config, from_dict, validate
from gkd_fast.data.settings import DataConfig
from gkd_fast.detectors import adapt
from gkd_fast.evaluation.coco import evaluate_coco
from gkd_fast.evaluation.one_image import detect_image
from gkd_fast.runs.data import read_val
from gkd_fast.runs.detector_file import load_detector
from gkd_fast.runs.settle import with_format
from gkd_fast.runs.teacher_check import Sample


@dataclass(frozen=True)
class Reached:
    """Figures on some images.

    Attributes:
        figures: as `evaluate_coco` gives them.
        images: how many.
        stated: AP in the checkpoint, as a fraction; None: none.
    """

    figures: dict[str, Any]
    images: int
    stated: float | None


def reached(
    checkpoint: Path,
    data: DataConfig,
    *,
    images: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> Reached:
    """COCO figures of a detector on validation images, each resized as its own library does.

    Args:
        checkpoint: a converted one.
        data: where the images lie.
        images: most of them, taken evenly from all.
        device: to run on.
        progress: called with the number of images done.

    Raises:
        InputError: for data that cannot be read, or of other classes.
    """
    trained = load_detector(checkpoint)
    sides = from_dict(trained.config).data
    config = with_format(Config(data=data))
    validate(config)
    sample = Sample(read_val(config, trained.classes), images)
    model = adapt(trained.build().eval().to(device)).opened()
    found = []
    for index in range(len(sample)):
        image, target = sample[index]
        result = detect_image(
            model,
            image.as_subclass(Tensor),
            short_side=sides.short_side,
            long_side=sides.long_side,
            rule=trained.spec.conventions.resize,
        )
        found.append({"image_id": target["image_id"], **result})
        progress(index + 1)
    return Reached(evaluate_coco(sample.ground_truth(), found), len(sample), trained.ap)
