"""Predictions for images of any size, as JSON and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gkd_fast.cli import predict
from gkd_fast.config import Config, to_dict
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.errors import InputError
from gkd_fast.evaluation.one_image import detect_image
from gkd_fast.predict.prediction import coco_records
from gkd_fast.runs.detector_file import save_detector


class Halves(nn.Module):
    """A detector that finds the left and the top half of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen = images
        height, width = images[0].shape[-2:]
        boxes = torch.tensor([[0.0, 0, width / 2, height], [0, 0, width, height / 2]])
        return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.4]), "labels": torch.tensor([2, 1])}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    spec = DetectorSpec(
        detector="faster_rcnn", backbone="mobilenet_v2", width=0.1, channels=16, head=16, proposals=20, detections=5
    )
    path = tmp_path_factory.mktemp("predict") / "model.pt"
    save_detector(path, build_detector(spec, 2), spec, ("cat", "dog"), to_dict(Config()))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images of one name in two folders."""
    for name, size in {"a.jpg": (90, 70), "deep/a.png": (64, 128)}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "olive").save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_boxes_are_in_pixels_of_the_original() -> None:
    model = Halves()
    found = detect_image(model, torch.zeros(3, 60, 100, dtype=torch.uint8), short_side=30, long_side=40)
    assert model.seen[0].shape == (3, 24, 40)
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 50, 60], [0, 0, 100, 30]]))
    sure = detect_image(model, torch.zeros(3, 60, 100, dtype=torch.uint8), short_side=30, long_side=40, score=0.5)
    assert sure["labels"].tolist() == [2]


def test_records_are_those_of_coco() -> None:
    found = detect_image(Halves(), torch.zeros(3, 60, 100, dtype=torch.uint8), short_side=30, long_side=40)
    records = coco_records(found, 7, ("cat", "dog"), first=3)
    assert records == [
        {"id": 3, "image_id": 7, "category_id": 2, "category": "dog", "bbox": [0, 0, 50, 60], "score": 0.9},
        {"id": 4, "image_id": 7, "category_id": 1, "category": "cat", "bbox": [0, 0, 100, 30], "score": 0.4},
    ]


def test_a_folder_becomes_one_json_and_drawn_images(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict.main([str(images), "--checkpoint", str(checkpoint), "--output", str(output), "--score", "0"])
    records = json.loads((output / "predictions.json").read_text())
    sizes = [(Path(image["file_name"]).name, image["width"], image["height"]) for image in records["images"]]
    assert sizes == [("a.jpg", 90, 70), ("a.png", 64, 128)]
    assert records["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [record["id"] for record in records["annotations"]] == list(range(1, len(records["annotations"]) + 1))
    assert {record["image_id"] for record in records["annotations"]} == {1, 2}
    with Image.open(output / "a.png") as first, Image.open(output / "a-2.png") as second:
        assert (first.size, second.size) == ((90, 70), (64, 128))
        assert len(first.getcolors(100000)) > 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not an image", r"broken\.jpg: expected a complete JPEG"), (None, r"broken\.jpg: image file not found")],
)
def test_an_unreadable_image_is_one_line_before_any_work(
    checkpoint: Path, images: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    broken = tmp_path / "broken.jpg"
    if content:
        broken.write_bytes(content)
    output = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        predict.main([str(images), str(broken), "--checkpoint", str(checkpoint), "--output", str(output)])
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--checkpoint none.pt", "IMAGES: expected at least one image or folder"),
        ("IMAGES", "--checkpoint: expected a detector's file"),
        ("IMAGES --checkpoint none.pt", "none.pt: expected a checkpoint file"),
        ("IMAGES --checkpoint none.pt --score 2", "--score: expected a number from 0 to 1"),
        ("EMPTY --checkpoint none.pt", "expected a folder with images"),
    ],
)
def test_unusable_options_are_named(arguments: str, message: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": str(images), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(InputError, match=message):
        predict.main([places.get(part, part) for part in arguments.split()])
