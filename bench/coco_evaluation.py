"""``python -m bench.coco_evaluation``: seconds for the COCO figures of drawn detections, 5,000 images of 100 each."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from gkd_fast.evaluation import evaluate_coco

_SIDE, _CLASSES, _OBJECTS = 640, 80, 7


def drawn(images: int, detections: int) -> tuple[dict, list[dict]]:
    """Ground truth of 7 objects an image among 80 classes, and detections of which two fifths lie near an object."""
    rng = np.random.default_rng(0)
    annotations: list[dict] = []
    found = []
    for image in range(images):
        corners, extents = rng.uniform(0, _SIDE - 200, (_OBJECTS, 2)), rng.uniform(8, 200, (_OBJECTS, 2))
        labels = rng.integers(1, _CLASSES + 1, _OBJECTS)
        for corner, extent, label in zip(corners, extents, labels.tolist(), strict=True):
            place = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            annotations.append({**place, "bbox": [*corner, *extent], "area": float(extent.prod())})
        near = rng.random(detections) < 0.4
        pick = rng.integers(0, _OBJECTS, detections)
        free = rng.uniform(0, _SIDE - 200, (detections, 2)), rng.uniform(8, 200, (detections, 2))
        close = (
            corners[pick] + rng.normal(0, 5, (detections, 2)),
            extents[pick] * rng.uniform(0.8, 1.2, (detections, 2)),
        )
        corner, extent = (np.where(near[:, None], a, b) for a, b in zip(close, free, strict=True))
        boxes = torch.from_numpy(np.concatenate([corner, corner + extent], 1)).float()
        guesses = np.where(near, labels[pick], rng.integers(1, _CLASSES + 1, detections))
        scores = torch.from_numpy(rng.random(detections))
        found.append({"image_id": image, "boxes": boxes, "scores": scores, "labels": torch.from_numpy(guesses)})
    listed = [{"id": image, "width": _SIDE, "height": _SIDE, "file_name": str(image)} for image in range(images)]
    categories = [{"id": label, "name": str(label)} for label in range(1, _CLASSES + 1)]
    return {"images": listed, "annotations": annotations, "categories": categories}, found


def main() -> None:
    """Draw, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="number of images")
    parser.add_argument("--detections", type=int, default=100, help="detections an image")
    options = parser.parse_args()
    ground_truth, detections = drawn(options.images, options.detections)
    wall, cpu = time.perf_counter(), time.process_time()
    result = evaluate_coco(ground_truth, detections)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{options.images} images of {options.detections}: {wall:.1f} s, {cpu:.1f} s of CPU, AP {result['AP']:.4f}")


if __name__ == "__main__":
    main()
