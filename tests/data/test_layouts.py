"""The same data set in every layout gives the same batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from same_folders import LAYOUTS, Split, coco_content
from tiny_folders import write_image, write_voc

from gkd_fast.data import PreparedDataset, as_dataset, build_loader, locate, open_dataset, recognise
from gkd_fast.data.annotated import AnnotatedImages
from gkd_fast.errors import InputError

NAMES = ("ant", "bee", "cow")


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Split]:
    """Six and three images of three sizes, without boxes on one of them."""
    (tmp_path / "drawn").mkdir()
    generator = np.random.default_rng(3)
    made: dict[str, Split] = {}
    for name, count in (("train", 6), ("val", 3)):
        made[name] = {}
        for number in range(count):
            height, width = [(30, 40), (64, 48), (37, 53)][number % 3]
            corner = generator.integers(0, (width // 2, height // 2), (number, 2))
            size = generator.integers(2, (width // 2, height // 2), (number, 2))
            boxes = [
                (NAMES[(number + k) % 3], x, y, x + w, y + h)
                for k, ((x, y), (w, h)) in enumerate(zip(corner.tolist(), size.tolist(), strict=True))
            ]
            path = write_image(tmp_path / "drawn" / f"{name}{number}.png", (height, width), seed=number)
            made[name][path] = ((height, width), boxes)
    return made


def batches(dataset: AnnotatedImages) -> list:
    prepared = PreparedDataset(dataset, short_side=32, long_side=64, flip=0.5, seed=1)
    loader = build_loader(prepared, batch_size=2, shuffle=True, seed=1, workers=0)
    loader.sampler.set_epoch(1)
    prepared.set_epoch(1)
    return list(loader)


def assert_equal(one: list, other: list) -> None:
    assert len(one) == len(other) > 0
    for (images, targets), (other_images, other_targets) in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
        for target, other_target in zip(targets, other_targets, strict=True):
            assert target.keys() == other_target.keys()
            for key in target:
                same = torch.equal if isinstance(target[key], torch.Tensor) else lambda a, b: a == b
                assert same(target[key], other_target[key]), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_batches_bit_for_bit(tmp_path: Path, splits: dict[str, Split], layout: str):
    LAYOUTS["voc"](tmp_path / "one", splits, NAMES)
    LAYOUTS[layout](tmp_path / "other", splits, NAMES)
    one, other = locate(tmp_path / "one"), locate(tmp_path / "other")
    assert other.names == ("train", "val")
    train = other.read_train()
    assert train.classes == NAMES
    assert_equal(batches(one.read_train()), batches(train))
    assert_equal(batches(one.read_val(NAMES)), batches(other.read_val(NAMES)))


def test_same_batches_of_files_of_any_name(tmp_path: Path, splits: dict[str, Split]):
    LAYOUTS["voc"](tmp_path / "one", splits, NAMES)
    for name in splits:
        (tmp_path / f"boxes of {name}").write_text(json.dumps(coco_content(splits[name], NAMES)))
    source = locate(
        None,
        train_annotations=tmp_path / "boxes of train",
        train_images=tmp_path / "drawn",
        val_annotations=tmp_path / "boxes of val",
    )
    one = locate(tmp_path / "one")
    assert_equal(batches(one.read_train()), batches(source.read_train()))
    assert_equal(batches(one.read_val(NAMES)), batches(source.read_val(NAMES)))


def test_same_batches_of_torchvision_objects(tmp_path: Path, splits: dict[str, Split]):
    from torchvision.datasets import CocoDetection, VOCDetection

    LAYOUTS["voc"](tmp_path / "VOCdevkit/VOC2012", splits, NAMES)
    LAYOUTS["coco"](tmp_path / "coco", splits, NAMES)
    own = batches(open_dataset(tmp_path / "VOCdevkit/VOC2012", "train"))
    annotations = tmp_path / "coco/annotations/instances_train.json"
    coco = as_dataset(CocoDetection(str(tmp_path / "coco/train"), str(annotations)))
    assert len(coco) == 6
    for path in (tmp_path / "VOCdevkit/VOC2012/JPEGImages").iterdir():
        path.rename(path.with_suffix(".jpg"))  # torchvision looks for no other name
    assert_equal(own, batches(as_dataset(VOCDetection(str(tmp_path), image_set="train"))))


def test_a_part_for_evaluation(tmp_path: Path, splits: dict[str, Split]):
    everything = {"train": splits["train"] | splits["val"]}
    drawn = []
    for layout in ("voc side by side", "coco of Roboflow", "yolo of Roboflow"):
        LAYOUTS[layout](tmp_path / layout, everything, NAMES)
        source = locate(tmp_path / layout, seed=4)
        train, val = source.read_train(), source.read_val(NAMES)
        names = [sorted(record.path.name for record in part.records) for part in (train, val)]
        assert (len(names[0]), len(names[1])) == (7, 2)
        assert not set(names[0]) & set(names[1])
        assert [record.image_id for record in val.records] == [0, 1]
        drawn.append(names)
    assert drawn[0] == drawn[1] == drawn[2]
    other = locate(tmp_path / "voc side by side", seed=5, val_fraction=0.34)
    assert len(other.read_val(NAMES)) == 3


def test_a_fraction_leaves_the_validation_split_alone(tmp_path: Path, splits: dict[str, Split]):
    LAYOUTS["coco"](tmp_path, splits, NAMES)
    source = locate(tmp_path, val_fraction=0.5)
    assert (len(source.read_train()), len(source.read_val(NAMES)), source.others) == (3, 3, ("val",))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("train", "val", "test"), ("train", "val")),
        (("train", "valid"), ("train", "valid")),
        (("train", "test"), ("train", "test")),
        (("train", "val", "trainval", "test"), ("trainval", "test")),
        (("train2017", "val2017"), ("train2017", "val2017")),
        (("training", "validation"), ("training", "validation")),
        (("mine",), ("mine", "")),
    ],
)
def test_splits_by_their_names(tmp_path: Path, names: tuple[str, ...], chosen: tuple[str, str]):
    for name in names:
        write_voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9))]}, split=name)
    assert locate(tmp_path).names == chosen


def test_parts_of_voc_are_trained_on_together(tmp_path: Path):
    for year, names in (("2007", ("trainval", "test", "train", "val")), ("2012", ("trainval", "train", "val"))):
        for name in names:
            write_voc(tmp_path / f"VOC{year}", {f"{year}{name}": [("cat", 0, (1, 1, 9, 9))]}, split=name)
    assert locate(tmp_path).names == ("VOC2007/trainval+VOC2012/trainval", "VOC2007/test")


def test_splits_that_do_not_tell(tmp_path: Path):
    for name in ("monday", "tuesday"):
        write_voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9))]}, split=name)
    with pytest.raises(InputError, match="--train-split: expected one of monday, tuesday"):
        locate(tmp_path)
    assert locate(tmp_path, train_split="monday", val_split="tuesday").names == ("monday", "tuesday")


def test_no_layout(tmp_path: Path):
    write_image(tmp_path / "a.jpg")
    with pytest.raises(
        InputError, match=r"expected a folder in the layout of COCO .* YOLO .* PASCAL VOC .* none of them"
    ):
        recognise(tmp_path)
    with pytest.raises(InputError, match=r"layout of YOLO .data.yaml, or images/ and labels/.; found none$"):
        recognise(tmp_path, "yolo")


def test_another_layout_than_asked_for(tmp_path: Path):
    write_voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9))]})
    with pytest.raises(InputError, match=r"--data coco: expected the layout of COCO .* it looks like PASCAL VOC$"):
        recognise(tmp_path, "coco")


def test_links_that_lead_back(tmp_path: Path):
    write_voc(tmp_path, {"a": [("cat", 0, (1, 1, 9, 9))]})
    (tmp_path / "JPEGImages/loop").symlink_to(tmp_path)
    (tmp_path / "JPEGImages/a.jpg").rename(tmp_path / "ImageSets/a.jpg")
    assert len(open_dataset(tmp_path)) == 1


def test_a_text_file_of_names_is_a_split(tmp_path: Path):
    write_voc(tmp_path, {name: [("cat", 0, (1, 1, 9, 9))] for name in "abc"})
    (tmp_path / "mine.txt").write_text("JPEGImages/b.jpg\nc\n")
    assert len(locate(tmp_path, train_split=str(tmp_path / "mine.txt"), val_split="train").read_train()) == 2
