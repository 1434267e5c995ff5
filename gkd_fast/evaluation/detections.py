"""Detections as both evaluations take them."""

from collections.abc import Sequence
from typing import Any

import torch

Detection = dict[str, Any]
"""image_id: int; boxes: float [n,4] XYXY in original pixels; scores: float [n]; labels: int64 [n]; on the CPU."""


def check_detections(ground_truth: dict[str, Any], detections: Sequence[Detection]) -> None:
    """ValueError unless the detections fit the ground truth: each image known and named once, each label a category."""
    images = {image["id"] for image in ground_truth["images"]}
    categories = torch.tensor([category["id"] for category in ground_truth["categories"]])
    for detection in detections:
        image_id, count = detection["image_id"], len(detection["boxes"])
        if image_id not in images:
            raise ValueError(f"expected images of the ground truth, each once, got {image_id!r}")
        images.remove(image_id)
        shapes = tuple(tuple(detection[key].shape) for key in ("boxes", "scores", "labels"))
        if shapes[0][1:] != (4,) or shapes[1:] != ((count,), (count,)):
            raise ValueError(f"image {image_id}: expected boxes [n,4], scores [n], labels [n], got shapes {shapes}")
        unknown = ~torch.isin(detection["labels"], categories)
        if unknown.any():
            raise ValueError(
                f"image {image_id}: expected labels among the categories, got {int(detection['labels'][unknown][0])}"
            )
