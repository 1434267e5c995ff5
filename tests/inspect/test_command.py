"""``gkd-fast inspect``: the same facts and choices as training's, a page that is whole, a refusal of one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from html_pages import check_page
from tiny_folders import write_voc

from gkd_fast.cli import train
from gkd_fast.cli.inspect import main, read
from gkd_fast.errors import InputError
from gkd_fast.runs.exits import run_command
from gkd_fast.runs.settle import settle

TRAIN = {
    "a": [("dog", 0, (1, 1, 20, 10)), ("cat", 0, (3, 3, 36, 28)), ("cat", 1, (5, 5, 9, 9))],
    "b": [],
    "c": [("dog", 0, (31, 11, 44, 20)), ("dog", 0, (2, 2, 8, 8)), ("dog", 0, (2, 2, 8, 8))],
    "d": [("&lt;odd&gt; &amp; name", 0, (5, 5, 30, 20))],
}
VAL = {"e": [("dog", 0, (1, 1, 20, 10))], "f": [("cat", 0, (3, 3, 36, 28))]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images to train on, and the first two of them again to evaluate on; without downloads."""
    monkeypatch.setattr("gkd_fast.runs.choice.weights_at_hand", lambda backbone, name: True)
    write_voc(tmp_path / "set", TRAIN)
    write_voc(tmp_path / "set", VAL, split="val")
    return tmp_path / "set"


def inspected(arguments: list[str], tmp_path: Path) -> str:
    main([*arguments, "--output", str(tmp_path / "page.html")])
    return (tmp_path / "page.html").read_text()


def test_the_page_shows_every_class_and_everything_that_was_met(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = inspected(["--data-root", str(root)], tmp_path)
    elements = check_page(text)
    assert elements.counts["section"] == 3
    assert text.count('class="cut"') == 6
    for title in (
        "Images without boxes",
        "Images in both splits",
        "What reading met",
        "Settings",
        "The dirtiest files",
    ):
        assert title in text
    assert "&lt;odd&gt; &amp; name" in text
    assert "<odd>" not in text
    printed = capsys.readouterr().out
    assert re.search(r"^dog +4 +2 +1 +1 ", printed, re.MULTILINE)
    assert "boxes clipped to their image: 1, first" in printed
    for remark in (
        "training boxes that stand in their image twice: 1, first",
        "2 of 2 validation images are training images byte for byte",
        "no validation box of <odd> & name",
    ):
        assert remark in printed
    assert re.search(r"anchors of \d+.*none reaches an IoU of 0.5 with \d+ of 6 training boxes", printed)


def test_the_settings_and_facts_are_those_of_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data-root", str(root), "--device", "cpu"]
    inspected(given, tmp_path)
    own = capsys.readouterr().out.splitlines()
    config, _ = settle(train.read(given), {"data_root", "device"})
    expected = capsys.readouterr().out.splitlines()
    assert len(expected) > 8
    assert [line for line in own if line in expected] == expected
    page = (tmp_path / "page.html").read_text()
    assert f"--short-side {config.data.short_side} --long-side {config.data.long_side}" in page
    assert f"--anchor-size {config.model.anchor_size}" in page
    assert f"--epochs {config.optim.epochs}" in page


def test_the_same_data_make_the_same_page(root: Path, tmp_path: Path) -> None:
    first = inspected(["--data-root", str(root), "--examples", "1"], tmp_path)
    assert inspected(["--data-root", str(root), "--examples", "1"], tmp_path) == first
    assert first.count('class="cut"') == 3


def test_a_part_of_one_split_is_told_as_such(root: Path, tmp_path: Path) -> None:
    text = inspected(["--data-root", str(root), "--train-split", "train", "--val-fraction", "0.5"], tmp_path)
    assert "All images, of which the validation images are a part" in text
    assert "Validation images</h3>" not in text
    assert text.count("boxes clipped to their image: 1") == 1  # below the one image, whichever part it is in


def test_scenes_need_no_folder(tmp_path: Path) -> None:
    text = inspected(["--scenes-train", "6", "--scenes-val", "4", "--short-side", "64", "--long-side", "64"], tmp_path)
    check_page(text)
    assert "What reading met" not in text
    assert "Settings of the preset scenes" in text


def test_a_preset_and_a_detector_are_taken_as_they_are(root: Path) -> None:
    options, config = read(
        ["--data-root", str(root), "--preset", "bccd", "--detector", "retinanet", "--anchor-size", "20"]
    )
    assert (config.preset, config.data.short_side) == ("bccd", 240)
    assert (config.model.detector, config.model.anchor_size) == ("retinanet", 20)
    assert options.examples == 10
    assert config.data == train.read(["--data-root", str(root), "--preset", "bccd"]).data


def test_a_refusal_is_the_line_of_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "JPEGImages" / "c.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    lines = []
    for command in (main, train.main):
        with pytest.raises(SystemExit) as end:
            run_command(command, ["--data-root", str(root), "--device", "cpu"])
        assert end.value.code == 2
        lines += capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {root / 'JPEGImages' / 'c.jpg'}: expected a complete JPEG")
    assert lines == lines[:1] * 2
    assert not (tmp_path / "inspect.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output none/page.html", "--output: expected a file in a folder that exists"),
        ("--examples 0", "--examples: expected a positive number"),
        ("--data-root nowhere", "nowhere: expected a folder, found nothing"),
        ("--classes horse --data-root ROOT", "unknown class 'horse'"),
    ],
)
def test_unusable_options_are_named(arguments: str, message: str, root: Path) -> None:
    with pytest.raises(InputError, match=message):
        main([str(root) if part == "ROOT" else part for part in arguments.split()])


def test_crowds_are_counted_and_not_drawn(root: Path, tmp_path: Path) -> None:
    size = {"width": 40, "height": 30}
    content = {
        "images": [{"id": n, "file_name": f"{name}.jpg", **size} for n, name in enumerate("abcd")],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": n // 2, "category_id": 1, "bbox": [2, 2, 9, 9], "iscrowd": n % 2} for n in range(8)
        ],
    }
    folder = tmp_path / "coco"
    shutil.copytree(root / "JPEGImages", folder / "images")
    (folder / "all.json").write_text(json.dumps(content))
    text = inspected(["--data-root", str(folder), "--val-fraction", "0.25"], tmp_path)
    assert "read as coco" in text
    rows = dict(re.findall(r"<tr><td>(train|val)</td>(.*?)</tr>", text))
    assert [re.findall(r"<td>([^<]*)", rows[role]) for role in ("train", "val")] == [
        ["3", "3", "1", "1", "0", "3", "40 x 30"],
        ["1", "1", "1", "1", "0", "1", "40 x 30"],
    ]
    assert text.count('class="cut"') == 3
