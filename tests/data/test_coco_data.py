from collections.abc import Callable
from pathlib import Path

import pytest

from gkd_fast.data import CocoDetection
from gkd_fast.errors import InputError


def test_targets_hold_trainable_boxes(coco: Path):
    dataset = CocoDetection(coco, "train")
    # In the order of the ids, of categories (3, 8) as of images (9, 70).
    assert dataset.classes == ("cup", "fork")
    assert [dataset[i][1]["image_id"] for i in range(2)] == [9, 70]
    assert dataset.dropped == 1
    assert dataset[0][1]["boxes"].tolist() == [[1.5, 2, 11.5, 14.25]]
    assert dataset[1][1]["boxes"].tolist() == [[4, 5, 24, 15]]
    assert dataset[1][1]["labels"].tolist() == [2]
    assert dataset[1][0].shape == (3, 30, 40)


def test_ground_truth_keeps_crowd_and_mask_area(coco: Path):
    truth = CocoDetection(coco, "train").ground_truth()
    rows = [tuple(a[key] for key in ("id", "image_id", "category_id", "iscrowd", "area")) for a in truth["annotations"]]
    assert rows == [(1, 9, 1, 0, 99.0), (2, 70, 2, 0, 123.5), (3, 70, 1, 1, 900.0)]
    assert truth["annotations"][1]["bbox"] == [4, 5, 20, 10]


def test_selected_classes(coco: Path):
    dataset = CocoDetection(coco, "train", classes=("fork",))
    assert [dataset[i][1]["labels"].tolist() for i in range(2)] == [[], [1]]
    assert dataset[0][1]["boxes"].shape == (0, 4)


def test_images_without_annotations_are_kept(edit_coco: Callable):
    root = edit_coco(lambda content: content["annotations"].pop(2))
    dataset = CocoDetection(root, "train")
    assert dataset[0][1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize("folder", ["", "annotations", "train"])
def test_missing_folder(coco: Path, folder: str):
    (coco / folder).rename(coco.parent / "elsewhere")
    with pytest.raises(InputError, match=rf"^{coco / folder}: expected a folder"):
        CocoDetection(coco, "train")


def test_missing_split_names_those_there(coco: Path):
    (coco / "val").mkdir()
    with pytest.raises(InputError, match=r"instances_val\.json: annotations not found, expected a split of train"):
        CocoDetection(coco, "val")


@pytest.mark.parametrize("text", ['{"images": [', "[]", "\ud800"])
def test_broken_json(coco: Path, text: str):
    (coco / "annotations/instances_train.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"instances_train\.json: expected") as error:
        CocoDetection(coco, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("categories"), "missing key 'categories'"),
        (lambda c: c["annotations"][0].pop("bbox"), "missing key 'bbox'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "expected COCO instance annotations"),
        (lambda c: c["annotations"][0].update(bbox=None), "expected COCO instance annotations"),
        (lambda c: c["annotations"][0].update(category_id=4), "annotation 100: unknown class 4"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 100: unknown image 5"),
        (
            lambda c: c["annotations"][0].update(bbox=[4, 5, 38, 10]),
            r"x\.jpg: expected boxes inside the image of 40 x 30",
        ),
        (lambda c: c["annotations"][0].update(bbox=[4, 5, -2, 10]), r"x\.jpg: expected boxes with x1 <= x2"),
        (lambda c: c["annotations"][0].update(bbox=[4, 5, float("nan"), 10]), r"x\.jpg: expected boxes inside"),
        (lambda c: c["annotations"].clear(), "expected at least one box to detect in 2 images"),
    ],
)
def test_broken_annotations_are_named(edit_coco: Callable, change: Callable, expected: str):
    root = edit_coco(change)
    with pytest.raises(InputError, match=expected) as error:
        CocoDetection(root, "train")
    assert str(error.value).startswith(str(root / "annotations" / "instances_train.json"))
    assert "\n" not in str(error.value)


def test_image_of_another_size(edit_coco: Callable):
    root = edit_coco(lambda content: content["images"][0].update(width=41))
    with pytest.raises(InputError, match=r"x\.jpg: expected 41 x 30 pixels as its annotation says, got 40 x 30"):
        CocoDetection(root, "train")


def test_missing_image(coco: Path):
    (coco / "train/y.jpg").unlink()
    with pytest.raises(InputError, match=r"y\.jpg: image file not found"):
        CocoDetection(coco, "train")


def test_unknown_class(coco: Path):
    with pytest.raises(InputError, match=r"instances_train\.json: unknown class 'spoon', expected one of cup, fork"):
        CocoDetection(coco, "train", classes=("spoon",))


@pytest.mark.parametrize(("split", "images", "boxes", "crowds"), [("train2017", 80, 770, 9), ("val2017", 57, 517, 7)])
def test_real_folder(real_data, split, images, boxes, crowds):
    dataset = CocoDetection(real_data("coco_tiny"), split)
    annotations = dataset.ground_truth()["annotations"]
    assert (len(dataset), len(dataset.classes)) == (images, 80)
    assert (len(annotations), sum(a["iscrowd"] for a in annotations)) == (boxes, crowds)
    assert sum(len(dataset[i][1]["labels"]) for i in range(images)) == boxes - crowds
