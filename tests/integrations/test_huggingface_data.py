"""Data sets of Hugging Face's library."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_fast.data import as_dataset
from gkd_fast.errors import InputError

datasets = pytest.importorskip("datasets")

BOXES = [[[3, 4, 10, 20], [0, 0, 40, 30]], [], [[5, 5, 20, 20]]]
LABELS = [[1, 0], [], [1]]


def rows(boxes: list = BOXES, labels: list = LABELS, *, names: tuple[str, ...] | None = ("cup", "fork")) -> object:
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                "category": datasets.Sequence(label),
            },
        }
    )
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (30, 40, 3)).astype(np.uint8)) for _ in boxes]
    objects = [{"bbox": box, "category": label} for box, label in zip(boxes, labels, strict=True)]
    return datasets.Dataset.from_dict({"image": images, "objects": objects}, features=features)


def test_boxes_as_corner_and_size() -> None:
    dataset = as_dataset(rows())
    assert dataset.classes == ("cup", "fork")
    assert dataset[0][1]["boxes"].tolist() == [[3, 4, 13, 24], [0, 0, 40, 30]]
    assert dataset[0][1]["labels"].tolist() == [2, 1]
    assert dataset[1][1]["boxes"].shape == (0, 4)
    assert np.array_equal(dataset[2][0].permute(1, 2, 0).numpy(), np.asarray(rows()[2]["image"]))
    assert "boxes read as x, y, width, height" in dataset.findings.notes


def test_boxes_as_corners() -> None:
    corners = [[[30, 4, 38, 20]], [], [[5, 5, 39, 29]]]
    found = as_dataset(rows(corners, [[1], [], [0]]))
    assert found[0][1]["boxes"].tolist() == [[30, 4, 38, 20]]
    assert "boxes read as x1, y1, x2, y2" in found.findings.notes
    with pytest.raises(InputError, match=r"expected a box that touches its image"):
        as_dataset(rows([[[38, 28, 39, 29]], [], [[50, 5, 59, 29]]], [[1], [], [0]]), boxes="xywh")


def test_names_that_are_not_there() -> None:
    assert as_dataset(rows(names=None)).classes == ("class 0", "class 1")
    assert as_dataset(rows(names=None), classes=("spoon", "knife")).classes == ("spoon", "knife")


def test_classes_in_another_order() -> None:
    dataset = as_dataset(rows(), classes=("fork",))
    assert dataset[0][1]["labels"].tolist() == [1]
    assert dataset.findings.notes["boxes of other classes left out"].number == 1


def test_images_in_files(tmp_path: Path) -> None:
    for number in range(3):
        content = io.BytesIO()
        rows()[number]["image"].save(content, "png")
        (tmp_path / f"{number}.png").write_bytes(content.getvalue())
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    stored = rows().remove_columns("image").add_column("image", files).cast_column("image", datasets.Image())
    assert np.array_equal(as_dataset(stored)[2][0].numpy(), as_dataset(rows())[2][0].numpy())


def test_other_columns_are_refused() -> None:
    with pytest.raises(TypeError, match="expected the columns image and objects, got image, boxes"):
        as_dataset(rows().rename_column("objects", "boxes"))
