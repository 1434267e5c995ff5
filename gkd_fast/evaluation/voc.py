"""PASCAL VOC mean average precision.

The rules are those of the VOC development kit: detections of a class compete in the order of their scores. Each looks
at the ground-truth box of its class and image that it overlaps most. It counts as true if the overlap reaches the
threshold and nobody took that box before, as nothing if that box is difficult, else as false. Overlaps are of
continuous boxes, as this package's VOC reader gives them: they equal the kit's overlaps of inclusive pixels, where a
width is xmax - xmin + 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gkd_fast.evaluation.detections import Detection, check_detections

RULES = ("2007", "2010")


def evaluate_voc(
    ground_truth: dict[str, Any], detections: Sequence[Detection], *, iou_threshold: float = 0.5, rule: str = "2010"
) -> dict[str, Any]:
    """Mean average precision at one overlap threshold.

    Args:
        ground_truth: in COCO format; `iscrowd` 1 means difficult: neither required nor held against a detection.
        detections: one dict an image: image_id, boxes [n,4] x1 y1 x2 y2 in original pixels, scores [n], labels [n].
        iou_threshold: least overlap (intersection over union) of a true detection.
        rule: "2007": mean of the best precisions at recall 0, 0.1, ..., 1 or more; "2010" (in use since): area under
            the precision-recall curve made monotone.

    Returns:
        `per_class`, {name: AP} in 0..1, -1 for a class without ground truth (difficult objects do not count), and
        `mAP`, the mean over the other classes (-1 if there is none).

    Raises:
        ValueError: an unknown rule, a threshold outside (0, 1], an unknown image or label, or an image twice.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {RULES}, got {rule!r}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"expected an IoU threshold in (0, 1], got {iou_threshold}")
    check_detections(ground_truth, detections)
    truth = _truth_by_image(ground_truth)
    labels, scores, matches = _match(truth, detections, iou_threshold)
    difficult = np.array([a.get("iscrowd", 0) != 0 for a in ground_truth["annotations"]], dtype=bool)
    truth_labels = np.array([a["category_id"] for a in ground_truth["annotations"]], dtype=np.int64)
    per_class = {}
    for category in ground_truth["categories"]:
        mine = labels == category["id"]
        positives = int((~difficult & (truth_labels == category["id"])).sum())
        per_class[category["name"]] = _average_precision(scores[mine], matches[mine], difficult, positives, rule)
    known = [value for value in per_class.values() if value >= 0]
    return {"mAP": float(np.mean(known)) if known else -1.0, "per_class": per_class}


def _truth_by_image(ground_truth: dict[str, Any]) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes [G,4] XYXY, labels [G] and positions [G] in the list of annotations, for each image that has any."""
    grouped: dict[int, list[int]] = {}
    for position, annotation in enumerate(ground_truth["annotations"]):
        grouped.setdefault(annotation["image_id"], []).append(position)
    truth = {}
    for image_id, positions in grouped.items():
        mine = [ground_truth["annotations"][position] for position in positions]
        boxes = np.array([annotation["bbox"] for annotation in mine], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        truth[image_id] = boxes, np.array([annotation["category_id"] for annotation in mine]), np.array(positions)
    return truth


def _match(
    truth: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]], detections: Sequence[Detection], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and the annotation (-1: none) that each detection overlaps most and enough, [D] each."""
    labels, scores, matches = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int64)]
    for detection in detections:
        own = detection["labels"].numpy()
        match = np.full(len(own), -1)
        if detection["image_id"] in truth and len(own):
            boxes, truth_labels, positions = truth[detection["image_id"]]
            overlap = _iou(detection["boxes"].double().numpy(), boxes)
            overlap[own[:, None] != truth_labels] = -1
            best = overlap.argmax(1)
            enough = np.take_along_axis(overlap, best[:, None], 1)[:, 0] >= threshold
            match[enough] = positions[best[enough]]
        labels.append(own)
        scores.append(detection["scores"].double().numpy())
        matches.append(match)
    return np.concatenate(labels), np.concatenate(scores), np.concatenate(matches)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of XYXY boxes [A,4] and [B,4]: [A,B]; 0 where both are empty."""
    extent = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    intersection = extent.clip(0).prod(2)
    area_a, area_b = (box[:, 2:] - box[:, :2] for box in (a, b))
    union = area_a.prod(1)[:, None] + area_b.prod(1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _average_precision(
    scores: np.ndarray, matches: np.ndarray, difficult: np.ndarray, positives: int, rule: str
) -> float:
    """Average precision of one class from its detections; `positives` is the number of boxes to be found."""
    if not positives:
        return -1.0
    matches = matches[np.argsort(-scores, kind="stable")]
    matches = matches[(matches < 0) | ~difficult[matches]]
    true = np.zeros(len(matches), dtype=bool)
    taken, first = np.unique(matches, return_index=True)
    true[first[taken >= 0]] = True
    found = np.cumsum(true)
    precision = found / np.arange(1, len(found) + 1)
    # The best precision at this recall or beyond.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "2010":
        return float(precision[true].sum() / positives)
    # recall >= t / 10 in whole numbers: 3 of 10 is not less than 0.3.
    reached = [np.flatnonzero(10 * found >= t * positives) for t in range(11)]
    return float(sum(precision[at[0]] for at in reached if at.size) / 11)
