from pathlib import Path

import pytest
import torch
from tiny_folders import write_image, write_voc
from torchvision import tv_tensors

from gkd_fast.data import open_dataset
from gkd_fast.errors import InputError


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_targets_hold_trainable_boxes(voc: Path):
    dataset = open_dataset(voc, "train")
    assert dataset.classes == ("cat", "dog")
    assert len(dataset) == 2
    assert dataset.findings.notes["boxes of no area dropped"].number == 1
    image, target = dataset[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 30, 40))
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    # Pixels 1..40 of 40, counted from 1 and inclusive, are the whole image.
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert target["labels"].tolist() == [2, 1]
    assert target["image_id"] == 0
    assert target["original_size"] == (30, 40)
    assert dataset[1][1]["boxes"].tolist() == [[2, 3, 22, 23]]


def test_ground_truth_marks_difficult(voc: Path):
    truth = open_dataset(voc, "train").ground_truth()
    assert truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert truth["images"][0] == {"id": 0, "width": 40, "height": 30, "file_name": "a.jpg"}
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1, 0]
    assert truth["annotations"][2]["bbox"] == [4, 4, 5, 5]
    assert truth["annotations"][2]["area"] == 25


def test_classes_of_all_splits_in_the_order_given(voc: Path):
    (voc / "ImageSets/Main/val.txt").write_text("b\n")
    val = open_dataset(voc, "val")
    assert val.classes == ("cat", "dog")
    assert open_dataset(voc, "val", classes=("dog", "cat"))[0][1]["labels"].tolist() == [2]


def test_objects_of_other_classes_are_left_out(voc: Path):
    dataset = open_dataset(voc, "train", classes=("cat",))
    assert [len(dataset[i][1]["labels"]) for i in range(2)] == [1, 1]


def test_boxes_are_clipped_and_counted(tmp_path: Path):
    objects = [("cat", 0, (0, 0, 41, 31)), ("cat", 0, (-30, 5, 90, 20)), ("cat", 0, (2, 2, 9, 9))]
    dataset = open_dataset(write_voc(tmp_path, {"a": objects}), "train")
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 40, 30], [0, 4, 40, 20], [1, 1, 9, 9]]
    note = dataset.findings.notes["boxes clipped to their image"]
    assert (note.number, note.first) == (2, f"{tmp_path}/Annotations/a.xml: object 1 (cat)")


def test_boxes_outside_their_image_are_refused_together(tmp_path: Path):
    outside = [("cat", 0, (50, 1, 60, 9)), ("cat", 0, (1, 31, 9, 40)), ("cat", 0, (1, 1, 9, 9))]
    root = write_voc(tmp_path, {"a": outside, "b": outside})
    (root / "JPEGImages/b.jpg").unlink()
    with pytest.raises(InputError) as error:
        open_dataset(root, "train")
    text = str(error.value)
    assert "a.xml: object 1 (cat): expected a box that touches its image of 40 x 30 pixels, got x 49 to 60" in text
    assert "(the first of 2 boxes outside their image)" in text
    assert "b: image file not found" in text


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_size_unknown_to_the_annotation_is_read_from_the_image(tmp_path: Path, size: str):
    root = write_voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9))]}, size=size)
    assert open_dataset(root, "train")[0][1]["original_size"] == (30, 40)


def test_png_images(voc: Path):
    (voc / "JPEGImages/a.jpg").unlink()
    write_image(voc / "JPEGImages/a.png", mode="L")
    assert open_dataset(voc, "train")[0][0].shape == (3, 30, 40)


@pytest.mark.parametrize("folder", ["", "Annotations"])
def test_missing_folder(voc: Path, folder: str):
    (voc / folder).rename(voc.parent / "elsewhere")
    with pytest.raises(InputError, match=rf"^{voc}: expected a folder"):
        open_dataset(voc, "train")


def test_missing_split_names_those_there(voc: Path):
    with pytest.raises(InputError, match=r"expected a split of train \(PASCAL VOC\), got 'test'"):
        open_dataset(voc, "test")


def test_empty_split(voc: Path):
    (voc / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train\.txt: .*empty"):
        open_dataset(voc, "train")


def test_missing_annotation(voc: Path):
    (voc / "Annotations/b.xml").unlink()
    with pytest.raises(InputError, match=r"b\.xml: .*not found"):
        open_dataset(voc, "train")


def test_missing_image(voc: Path):
    (voc / "JPEGImages/b.jpg").unlink()
    with pytest.raises(InputError, match=r"/b: image file not found, .*b\.xml names it"):
        open_dataset(voc, "train")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("</annotation>", "", "well-formed XML"),
        ("<width>40</width>", "<width>wide</width>", "whole numbers as size"),
        ("<width>40</width>", "<width>41</width>", "41 x 30 pixels as its annotation says, got 40 x 30"),
        ("<xmin>3</xmin>", "<xmin>left</xmin>", "expected numbers as xmin"),
        ("<xmin>3</xmin>", "", "expected numbers as xmin"),
        ("<name>cat</name>", "", "object 1: expected a name"),
        ("<xmin>3</xmin>", "<xmin>42</xmin>", "expected x1 <= x2 and y1 <= y2, got x 41 to 22, y 3 to 23"),
        ("<ymin>4</ymin>", "<ymin>26</ymin>", "expected x1 <= x2 and y1 <= y2"),
        ("<xmin>3</xmin>", "<xmin>nan</xmin>", "finite corners"),
    ],
)
def test_broken_annotation_is_named(voc: Path, old: str, new: str, expected: str):
    change(voc / "Annotations/b.xml", old, new)
    with pytest.raises(InputError, match=expected) as error:
        open_dataset(voc, "train")
    assert str(voc) in str(error.value)
    assert f"{'JPEGImages/b.jpg' if 'pixels as' in expected else 'Annotations/b.xml'}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_class(voc: Path):
    with pytest.raises(InputError, match=r"train\.txt: unknown class 'bird', expected one of cat, dog"):
        open_dataset(voc, "train", classes=("cat", "bird"))


def test_class_named_twice(voc: Path):
    with pytest.raises(InputError, match="expected each class once"):
        open_dataset(voc, "train", classes=("cat", "cat"))


def test_no_boxes(tmp_path: Path):
    root = write_voc(tmp_path, {"a": [], "b": [("cat", 1, (1, 1, 9, 9)), ("cat", 0, (4, 4, 4, 9))]})
    with pytest.raises(InputError, match=r"train\.txt: expected at least one box to detect in 2 images"):
        open_dataset(root, "train")


def test_file_that_breaks_later_is_named(voc: Path):
    dataset = open_dataset(voc, "train")
    (voc / "JPEGImages/a.jpg").write_bytes(b"gone")
    with pytest.raises(InputError, match=r"a\.jpg: expected a complete"):
        dataset[0]


@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "classes", "dropped"),
    [
        ("bccd", "trainval", 292, 3941, ("Platelets", "RBC", "WBC"), 2),
        ("bccd", "test", 72, 945, ("Platelets", "RBC", "WBC"), 0),
        ("cards", "trainval", 296, 527, ("ace", "jack", "king", "nine", "queen", "ten"), 0),
        ("cards", "test", 67, 143, ("ace", "jack", "king", "nine", "queen", "ten"), 0),
    ],
)
def test_real_folders(real_data, name, split, images, boxes, classes, dropped):
    dataset = open_dataset(real_data(name), split)
    notes = dataset.findings.notes
    assert (len(dataset), dataset.classes) == (images, classes)
    assert sum(note.number for note in notes.values()) == dropped
    assert set(notes) <= {"boxes of no area dropped"}
    assert len(dataset.ground_truth()["annotations"]) == boxes
    image, target = dataset[0]
    assert tuple(image.shape[-2:]) == target["original_size"]


def test_several_folders_are_one_data_set(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", {"a": [("dog", 0, (1, 1, 20, 20))], "b": [("cat", 0, (1, 1, 9, 9))]})
    write_voc(tmp_path / "VOC2012", {"a": [("ape", 0, (3, 3, 30, 25))]})
    both = open_dataset(tmp_path, "VOC2007/train+VOC2012/train")
    assert both.classes == ("ape", "cat", "dog")
    assert [image["id"] for image in both.ground_truth()["images"]] == [0, 1, 2]
    assert [both[i][1]["labels"].tolist() for i in range(3)] == [[3], [2], [1]]
    assert both[2][1]["boxes"].tolist() == [[2, 2, 30, 25]]
    assert open_dataset(tmp_path, "VOC2012/train").classes == ("ape",)
    with pytest.raises(InputError, match="VOC2009"):
        open_dataset(tmp_path, "VOC2007/train+VOC2009/train")
