"""Ground truth and detections from short rows."""

import torch


def truth(*annotations: tuple, images: int = 2, classes: tuple[str, ...] = ("cat", "dog")) -> dict:
    """annotations: (image, label, (x, y, w, h)) with an optional iscrowd."""
    return {
        "images": [{"id": k, "width": 200, "height": 200, "file_name": f"{k}.jpg"} for k in range(images)],
        "annotations": [
            {
                "id": k,
                "image_id": image,
                "category_id": label,
                "bbox": list(bbox),
                "area": bbox[2] * bbox[3],
                "iscrowd": crowd[0] if crowd else 0,
            }
            for k, (image, label, bbox, *crowd) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes, start=1)],
    }


def detection(image: int, *rows: tuple) -> dict:
    """rows: (label, score, (x1, y1, x2, y2))."""
    return {
        "image_id": image,
        "boxes": torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor([row[1] for row in rows]),
        "labels": torch.tensor([row[0] for row in rows], dtype=torch.int64),
    }
