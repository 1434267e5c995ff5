"""The Ultralytics pair: yolo11s teaches yolo11n, both from random weights, by Ultralytics' own trainer."""

from __future__ import annotations

from pathlib import Path

from gkd_fast.data import AnnotatedImages
from gkd_fast.evaluation.detections import Detection

_SIDE = 160
_TEACHER = {"epochs": 15}
_STUDENT = {"epochs": 10}
# At this size a mosaic's cells are a few pixels wide, and the schedule is short: no mosaic.
_SHARED = {
    "imgsz": _SIDE,
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 1e-3,
    "warmup_epochs": 1,
    "warmup_bias_lr": 0.0,
    "mosaic": 0.0,
    "flipud": 0.5,
    "amp": False,
    "val": False,
    "plots": False,
    "workers": 0,
    "cache": True,
    "device": "cpu",
    "exist_ok": True,
    "verbose": False,
}


def run(
    role: str, seed: int, train: AnnotatedImages, test: AnnotatedImages, folder: Path, name: str, method: str
) -> list[Detection]:
    """Train one network and detect in the test images."""
    from ultralytics import YOLO

    data = write_yolo(train, test, folder / "data")
    network = YOLO("yolo11s.yaml" if role == "teacher" else "yolo11n.yaml")
    settings = {**_SHARED, **(_TEACHER if role == "teacher" else _STUDENT)}
    trainer = None
    if role == "distilled":
        from gkd_fast.integrations.ultralytics import distil

        trainer = distil(folder / "teacher/weights/last.pt", method=method, min_box=8)
    network.train(data=data, seed=seed, project=str(folder.resolve()), name=name, trainer=trainer, **settings)
    return detect(folder / name / "weights/last.pt", test)


def detect(weights: Path, test: AnnotatedImages) -> list[Detection]:
    """What a saved network finds, in pixels of the original images."""
    from ultralytics import YOLO

    network, detections = YOLO(weights), []
    for record in test.records:
        found = network.predict(record.path, imgsz=_SIDE, conf=0.001, max_det=100, device="cpu", verbose=False)[0].boxes
        boxes = {"boxes": found.xyxy.cpu(), "scores": found.conf.cpu(), "labels": found.cls.long().cpu() + 1}
        detections.append({"image_id": record.image_id, **boxes})
    return detections


def write_yolo(train: AnnotatedImages, test: AnnotatedImages, folder: Path) -> Path:
    """The data set as Ultralytics reads it: links to the images, boxes as text.

    Returns:
        The file that names the parts and the classes.
    """
    description = folder / "data.yaml"
    for part, dataset in (("train", train), ("val", test)):
        images, labels = folder / "images" / part, folder / "labels" / part
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for record in dataset.records:
            link = images / record.path.name
            if not link.exists():
                link.symlink_to(record.path.resolve())
            (labels / f"{record.path.stem}.txt").write_text(_lines(record.boxes, record.labels, record.size))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(train.classes))
    description.write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return description


def _lines(boxes: object, labels: object, size: tuple[int, int]) -> str:
    """One line a box: class from 0, centre and size as fractions of the image's."""
    height, width = size
    lines = []
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        centre = (left + right) / 2 / width, (top + bottom) / 2 / height
        extent = (right - left) / width, (bottom - top) / height
        lines.append(" ".join([str(label - 1), *(f"{value:.6f}" for value in (*centre, *extent))]))
    return "\n".join(lines)
