"""Images of both splits are found by their content."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image
from tiny_folders import write_voc

from gkd_fast.data import open_dataset
from gkd_fast.inspect.duplicates import Shared, shared_images

BOX = [("dog", 0, (1, 1, 20, 10))]


def test_the_same_content_is_found_under_another_name(tmp_path: Path) -> None:
    train = write_voc(tmp_path / "train", {"a": BOX, "b": BOX, "c": BOX})
    val = write_voc(tmp_path / "val", {"x": BOX, "y": BOX})
    shutil.copy(train / "JPEGImages" / "c.jpg", val / "JPEGImages" / "x.jpg")
    shutil.copy(train / "JPEGImages" / "a.jpg", val / "JPEGImages" / "y.jpg")
    found = shared_images(open_dataset(train, "train"), open_dataset(val, "train"))
    assert found == [Shared(2, 0), Shared(0, 1)]


def test_files_of_one_size_with_other_pixels_are_not_the_same(tmp_path: Path) -> None:
    folders = [write_voc(tmp_path / name, {"a": BOX}) for name in ("train", "val")]
    for number, folder in enumerate(folders):
        (folder / "JPEGImages" / "a.jpg").unlink()
        image = Image.new("RGB", (40, 30), (90, 90, 90))
        image.putpixel((0, 0), (number, 0, 0))  # far from the middle of the file
        image.save(folder / "JPEGImages" / "a.bmp")
    train, val = (open_dataset(folder, "train") for folder in folders)
    assert train.records[0].path.stat().st_size == val.records[0].path.stat().st_size
    assert shared_images(train, val) == []
    assert shared_images(train, train) == [Shared(0, 0)]
