import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_folders import write_image, write_voc


@pytest.fixture(autouse=True)
def image_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is remembered of images, apart from the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("gkd_fast.data.image_check.cache_folder", lambda: folder)
    return folder


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images, classes cat and dog, one difficult dog, one box of zero area."""
    return write_voc(
        tmp_path / "voc",
        {
            "a": [("dog", 0, (1, 1, 40, 30)), ("cat", 0, (11, 6, 20, 15)), ("dog", 1, (5, 5, 9, 9))],
            "b": [("cat", 0, (3, 4, 22, 23)), ("cat", 0, (7, 7, 7, 7))],
        },
    )


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two images (ids 70 and 9), categories 3 cup and 8 fork, one crowd, one box of zero area."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    for seed, name in enumerate(("x.jpg", "y.jpg")):
        write_image(root / "train" / name, seed=seed)
    boxes = [
        (70, 8, [4, 5, 20, 10], 0, 123.5),
        (70, 3, [0, 0, 40, 30], 1, 900.0),
        (9, 3, [1.5, 2, 10, 12.25], 0, 99.0),
        (9, 3, [5, 5, 0, 3], 0, 0.0),
    ]
    content = {
        "images": [
            {"id": 70, "width": 40, "height": 30, "file_name": "x.jpg"},
            {"id": 9, "width": 40, "height": 30, "file_name": "y.jpg"},
        ],
        "annotations": [
            {"id": 100 + i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd, "area": area}
            for i, (image, category, box, crowd, area) in enumerate(boxes)
        ],
        "categories": [{"id": 8, "name": "fork"}, {"id": 3, "name": "cup"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def edit_coco(coco: Path) -> Callable[[Callable[[dict], object]], Path]:
    """Applies a change to the fixture's annotations and returns its folder."""

    def edit(change: Callable[[dict], object]) -> Path:
        path = coco / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return coco

    return edit
