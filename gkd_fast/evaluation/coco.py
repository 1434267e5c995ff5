"""COCO average precision, by pycocotools."""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gkd_fast.evaluation.detections import Detection, check_detections

# Where pycocotools puts its summary of twelve figures.
_FIGURES = {
    "AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR1": 6, "AR10": 7, "AR100": 8,
}  # fmt: skip


def evaluate_coco(ground_truth: dict[str, Any], detections: Sequence[Detection]) -> dict[str, Any]:
    """COCO box average precision and recall.

    Args:
        ground_truth: in COCO format, annotation ids from 1; `iscrowd` regions cost nothing. It is not changed.
        detections: one dict an image (images without detections may be left out): image_id, boxes [n,4] x1 y1 x2 y2 in
            original pixels, scores [n], labels [n] (category ids).

    Returns:
        AP (mean over IoU 0.50:0.95), AP50, AP75, APs, APm, APl (objects below 32^2, between, above 96^2 square pixels),
        AR1, AR10, AR100 (by detections an image) in 0..1, and `per_class`, {name: AP}. As in pycocotools a figure is -1
        where the ground truth has no object of the kind.

    Raises:
        ValueError: a detection of an unknown image or label, or an image twice.
    """
    check_detections(ground_truth, detections)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), _without_collector():
        evaluation = COCOeval(_index(ground_truth), _index(_as_dataset(ground_truth, detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    result: dict[str, Any] = {name: float(evaluation.stats[at]) for name, at in _FIGURES.items()}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    # [IoU, recall, class, area, detections an image]: all areas, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    result["per_class"] = {
        names[key]: _mean_of_known(precision[:, :, k]) for k, key in enumerate(evaluation.params.catIds)
    }
    return result


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of small objects are made and kept: each search for cycles among them takes longer and finds none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _index(dataset: dict[str, Any]) -> COCO:
    """pycocotools' view of a data set in memory; COCOeval writes into annotations, so it gets copies."""
    coco = COCO()
    coco.dataset = {**dataset, "annotations": [dict(annotation) for annotation in dataset["annotations"]]}
    coco.createIndex()
    return coco


def _as_dataset(ground_truth: dict[str, Any], detections: Sequence[Detection]) -> dict[str, Any]:
    """Detections in pycocotools' format, without the polygons that its own loadRes adds to each box."""
    annotations: list[dict[str, Any]] = []
    for detection in detections:
        bboxes = detection["boxes"].double()
        bboxes = torch.cat([bboxes[:, :2], bboxes[:, 2:] - bboxes[:, :2]], dim=1)
        if detection["boxes"].dtype != torch.float64:
            # Float32 holds a coordinate of 1000 to 1e-4: the difference x2 - x1 would turn overlaps that equal a
            # threshold into smaller ones.
            bboxes = bboxes.round(decimals=3)
        areas = bboxes[:, 2:].prod(1).tolist()
        values = zip(bboxes.tolist(), areas, detection["scores"].tolist(), detection["labels"].tolist(), strict=True)
        for bbox, area, score, label in values:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": detection["image_id"],
                    "category_id": label,
                    "bbox": bbox,
                    "area": area,
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return {**ground_truth, "annotations": annotations}


def _mean_of_known(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
