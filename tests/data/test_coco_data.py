from collections.abc import Callable
from pathlib import Path

import pytest

from gkd_fast.data import open_dataset
from gkd_fast.errors import InputError


def test_targets_hold_trainable_boxes(coco: Path):
    dataset = open_dataset(coco, "train")
    # Categories in the order of their ids (3, 8), images in that of their names.
    assert dataset.classes == ("cup", "fork")
    assert [dataset[i][1]["image_id"] for i in range(2)] == [0, 1]
    assert dataset.findings.notes["boxes of no area dropped"].number == 1
    assert dataset[1][1]["boxes"].tolist() == [[1.5, 2, 11.5, 14.25]]
    assert dataset[0][1]["boxes"].tolist() == [[4, 5, 24, 15]]
    assert dataset[0][1]["labels"].tolist() == [2]
    assert dataset[0][0].shape == (3, 30, 40)


def test_ground_truth_keeps_crowd_and_mask_area(coco: Path):
    truth = open_dataset(coco, "train").ground_truth()
    rows = [tuple(a[key] for key in ("id", "image_id", "category_id", "iscrowd", "area")) for a in truth["annotations"]]
    assert rows == [(1, 0, 2, 0, 123.5), (2, 0, 1, 1, 900.0), (3, 1, 1, 0, 99.0)]
    assert truth["annotations"][0]["bbox"] == [4, 5, 20, 10]


def test_selected_classes(coco: Path):
    dataset = open_dataset(coco, "train", classes=("fork",))
    assert [dataset[i][1]["labels"].tolist() for i in range(2)] == [[1], []]
    assert dataset[1][1]["boxes"].shape == (0, 4)


def test_images_without_annotations_are_kept(edit_coco: Callable):
    root = edit_coco(lambda content: content["annotations"].pop(2))
    dataset = open_dataset(root, "train")
    assert dataset[1][1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_missing_folder(coco: Path, folder: str):
    (coco / folder).rename(coco.parent / "elsewhere")
    with pytest.raises(InputError, match=rf"^{coco}: expected a folder"):
        open_dataset(coco, "train")


def test_missing_split_names_those_there(coco: Path):
    (coco / "val").mkdir()
    with pytest.raises(InputError, match=r"expected a split of train \(COCO\), got 'val'"):
        open_dataset(coco, "val")


@pytest.mark.parametrize("text", ['{"images": [', "[]", "\ud800"])
def test_broken_json(coco: Path, text: str):
    (coco / "annotations/instances_train.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"instances_train\.json: expected") as error:
        open_dataset(coco, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("categories"), "missing key 'categories'"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 100: expected a bbox, or a segmentation"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 100: bbox: expected x, y, width, height"),
        (lambda c: c["annotations"][0].update(bbox=None), "annotation 100: expected a bbox, or a segmentation"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "wide", 3]), "annotation 100: bbox: expected four numbers"),
        (lambda c: c["images"].append({**c["images"][0], "file_name": "z.jpg"}), "got 70 twice: x.jpg and z.jpg"),
        (
            lambda c: c["images"].append({**c["images"][0], "id": 71}),
            "got x.jpg twice: the same file with ids 70 and 71",
        ),
        (lambda c: c["categories"].append({"id": "3", "name": "spoon"}), "got 3 twice: 'cup' and 'spoon'"),
        (lambda c: c["categories"].append({"id": 9, "name": "cup"}), "got 'cup' twice: ids 3 and 9"),
        (lambda c: c["annotations"][0].update(category_id=4), "annotation 100: unknown class 4"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 100: unknown image 5"),
        (
            lambda c: c["annotations"][0].update(bbox=[44, 5, 8, 10]),
            r"x\.jpg: annotation 100: expected a box that touches its image of 40 x 30 pixels",
        ),
        (lambda c: c["annotations"][0].update(bbox=[4, 5, -2, 10]), r"x\.jpg: annotation 100: expected x1 <= x2"),
        (
            lambda c: c["annotations"][0].update(bbox=[4, 5, float("nan"), 10]),
            r"x\.jpg: annotation 100: expected finite",
        ),
        (lambda c: c["annotations"].clear(), "expected at least one box to detect in 2 images"),
    ],
)
def test_broken_annotations_are_named(edit_coco: Callable, change: Callable, expected: str):
    root = edit_coco(change)
    with pytest.raises(InputError, match=expected) as error:
        open_dataset(root, "train")
    assert str(error.value).startswith(str(root / "annotations" / "instances_train.json"))
    assert "\n" not in str(error.value)


def test_image_of_another_size(edit_coco: Callable):
    root = edit_coco(lambda content: content["images"][0].update(width=41))
    with pytest.raises(InputError, match=r"x\.jpg: expected 41 x 30 pixels as its annotation says, got 40 x 30"):
        open_dataset(root, "train")


def test_missing_image(coco: Path):
    (coco / "train/y.jpg").unlink()
    with pytest.raises(InputError, match=r"y\.jpg: image file not found"):
        open_dataset(coco, "train")


def test_unknown_class(coco: Path):
    with pytest.raises(InputError, match=r"instances_train\.json: unknown class 'spoon', expected one of cup, fork"):
        open_dataset(coco, "train", classes=("spoon",))


@pytest.mark.parametrize(("split", "images", "boxes", "crowds"), [("train2017", 80, 770, 9), ("val2017", 57, 517, 7)])
def test_real_folder(real_data, split, images, boxes, crowds):
    dataset = open_dataset(real_data("coco_tiny"), split)
    annotations = dataset.ground_truth()["annotations"]
    assert (len(dataset), len(dataset.classes)) == (images, 80)
    assert (len(annotations), sum(a["iscrowd"] for a in annotations)) == (boxes, crowds)
    assert sum(len(dataset[i][1]["labels"]) for i in range(images)) == boxes - crowds
