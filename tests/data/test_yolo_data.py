from pathlib import Path

import pytest
from tiny_folders import write_image

from gkd_fast.data import open_dataset, recognise
from gkd_fast.errors import InputError

LINES = {"a": "1 0.25 0.5 0.25 0.2\n0 0.5 0.5 1 1\n", "b": ""}


def write_yolo(root: Path, labels: dict[str, str | None], *, split: str = "train") -> Path:
    """images/SPLIT and labels/SPLIT of 40 x 30 images; None: no label file."""
    images, texts = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    texts.mkdir(parents=True)
    for number, (name, text) in enumerate(labels.items()):
        write_image(images / f"{name}.jpg", seed=number)
        if text is not None:
            (texts / f"{name}.txt").write_text(text)
    return root


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = write_yolo(tmp_path / "yolo", LINES)
    write_yolo(root, {"c": "0 0.5 0.5 0.1 0.1"}, split="val")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cup, fork]\nnc: 2\n")
    return root


def test_a_described_data_set(yolo: Path):
    layout = recognise(yolo)
    assert (layout.kind, layout.what, list(layout.splits)) == ("yolo", "YOLO (data.yaml)", ["train", "val"])
    dataset = open_dataset(yolo)
    assert dataset.classes == ("cup", "fork")
    assert dataset[0][1]["boxes"].tolist() == [[5, 12, 15, 18], [0, 0, 40, 30]]
    assert dataset[0][1]["labels"].tolist() == [2, 1]
    assert dataset[1][1]["boxes"].shape == (0, 4)
    assert open_dataset(yolo / "data.yaml", "val")[0][1]["boxes"].tolist() == [[18, 13.5, 22, 16.5]]


@pytest.mark.parametrize(
    "text",
    [
        "path: /somewhere/else\ntrain: images/train\nval: images/val\nnames: {0: cup, 1: fork}\n",
        "train: ../images/train\nval: ../images/val\nnames: [cup, fork]\n",
        "train: /somewhere/else/images/train\nval: [images/val]\nnames: [cup, fork]\n",
    ],
)
def test_paths_of_another_machine(yolo: Path, text: str):
    (yolo / "data.yaml").write_text(text)
    assert [len(open_dataset(yolo, split)) for split in ("train", "val")] == [2, 1]


def test_without_a_description(yolo: Path):
    (yolo / "data.yaml").unlink()
    assert list(recognise(yolo).splits) == ["train", "val"]
    assert open_dataset(yolo).classes == ("class 0", "class 1")
    (yolo / "classes.txt").write_text("cup\nfork\nspoon\n")
    assert open_dataset(yolo).classes == ("cup", "fork", "spoon")


def test_split_folders_and_files_side_by_side(tmp_path: Path):
    for split in ("train", "valid"):
        (tmp_path / "own" / split).mkdir(parents=True)
        write_yolo(tmp_path / "own" / split / "all", LINES, split=".")
    root = tmp_path / "own"
    for split in ("train", "valid"):
        for kind in ("images", "labels"):
            (root / split / "all" / kind).rename(root / split / kind)
        (root / split / "all").rmdir()
    assert list(recognise(root).splits) == ["train", "valid"]
    assert len(open_dataset(root)) == 2
    beside = tmp_path / "beside"
    beside.mkdir()
    for path in (root / "train").rglob("*.*"):
        path.rename(beside / path.name)
    assert list(recognise(beside).splits) == ["all"]
    assert open_dataset(beside)[0][1]["labels"].tolist() == [2, 1]


def test_a_list_of_images(yolo: Path):
    (yolo / "train.txt").write_text("./images/train/a.jpg\n")
    (yolo / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cup, fork]\n")
    assert len(open_dataset(yolo)) == 1


def test_a_split_that_is_not_there_is_not_missed(yolo: Path):
    (yolo / "data.yaml").write_text((yolo / "data.yaml").read_text() + "test: ../test/images\n")
    assert len(open_dataset(yolo)) == 2
    with pytest.raises(InputError, match="test/images: expected a folder of images"):
        open_dataset(yolo, "test")


def test_polygons_become_boxes(tmp_path: Path):
    root = write_yolo(tmp_path, {"a": "0 0.25 0.2 0.5 0.2 0.5 0.6 0.3 0.7"})
    dataset = open_dataset(root)
    assert dataset[0][1]["boxes"].tolist() == [[10, 6, 20, 21]]
    assert dataset.findings.notes["boxes taken as the bounds of a polygon"].number == 1


def test_boxes_drawn_in_pixels_come_back(tmp_path: Path):
    # x 7 to 20, y 3 to 14 of 40 x 30 pixels, with the six digits that tools write
    root = write_yolo(tmp_path, {"a": f"0 {13.5 / 40:.6f} {8.5 / 30:.6f} {13 / 40:.6f} {11 / 30:.6f}"})
    assert open_dataset(root)[0][1]["boxes"].tolist() == [[7, 3, 20, 14]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 12 14 8 9", "fractions of 0 to 1, got 12 14 8 9: they look like pixels"),
        ("0 0.5 0.5 0.1", "got 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.93", "a sixth number is a detection's score"),
        ("2 0.5 0.5 0.1 0.1", "expected a class of 0 to 1, got 2"),
        ("1.5 0.5 0.5 0.1 0.1", "a whole number as class"),
        ("cup 0.5 0.5 0.1 0.1", "expected numbers"),
        ("0 0.5 0.5 -0.1 0.1", "expected x1 <= x2"),
        ("0 nan 0.5 0.1 0.1", "expected fractions"),
    ],
)
def test_wrong_lines_are_named_and_counted(yolo: Path, line: str, expected: str):
    for name in ("a", "b"):
        (yolo / "labels/train" / f"{name}.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputError, match=expected) as error:
        open_dataset(yolo)
    assert "labels/train/a.txt: line 2" in str(error.value)
    assert "(the first of 2 " in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: images/train\nnames: [cup, cup]\n", "'cup' twice"),
        ("train: images/train\nnames: [cup]\nnc: 3\n", "nc: expected the number of names, 1, got 3"),
        ("train: images/nowhere\nnames: [cup]\n", "nowhere: expected a folder of images"),
        ("train: images/train\nnames: {0: cup, 2: fork}\n", "expected the keys 0 to 1"),
        ("train: images/train\nnames: [cup\n", "expected YAML"),
    ],
)
def test_wrong_descriptions_are_refused(yolo: Path, text: str, expected: str):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=expected):
        open_dataset(yolo)


def test_what_lies_alone_is_counted(tmp_path: Path):
    root = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1", "b": None})
    (root / "labels/train/z.txt").write_text("0 0.5 0.5 0.1 0.1")
    (root / "labels/train/._a.txt").write_bytes(b"\x00\x05\x16")
    notes = open_dataset(root).findings.notes
    assert notes["images without a label file, taken as without objects"].first.endswith("b.jpg")
    assert notes["label files without an image, left out"].number == 1
