"""What reading met is remembered with its boxes, and the worst files come first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_folders import write_image, write_voc

from gkd_fast.data import PreparedDataset, open_dataset
from gkd_fast.data.findings import Findings
from gkd_fast.inspect.dirt import dirtiest, dirty_images, findings_table

# Of 40 x 30 pixels.
OBJECTS = {
    "clean": [("dog", 0, (1, 1, 20, 10))],
    "clipped": [("dog", 0, (31, 11, 44, 20)), ("dog", 0, (1, 1, 20, 10))],
    "worst": [("dog", 0, (35, 5, 43, 9)), ("dog", 0, (35, 15, 42, 19)), ("dog", 0, (7, 7, 7, 9))],
}


def test_the_boxes_of_a_case_are_as_written(tmp_path: Path) -> None:
    notes = open_dataset(write_voc(tmp_path, OBJECTS), "train").findings.notes
    clipped = notes["boxes clipped to their image"]
    assert (clipped.number, len(clipped.cases)) == (3, 2)
    worst, other = clipped.cases
    assert worst.number == 2
    assert worst.image == str(tmp_path / "JPEGImages" / "worst.jpg")
    assert worst.boxes.tolist() == [[34, 4, 43, 9], [34, 14, 42, 19]]
    assert other.boxes.tolist() == [[30, 10, 44, 20]]
    (dropped,) = notes["boxes of no area dropped"].cases
    assert dropped.boxes.tolist() == [[7, 7, 7, 9]]


def test_the_worst_files_come_first_and_clean_ones_not_at_all(tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path, OBJECTS), "train")
    names = [record.path.stem for record in dataset.records]
    found = dirtiest(dataset)
    assert [names[own.index] for own in found] == ["worst", "clipped"]
    assert found[0].kinds == {"boxes clipped to their image": 2, "boxes of no area dropped": 1}
    figures = dirty_images(PreparedDataset(dataset, short_side=60, long_side=80), "key")
    assert len(figures) == 2
    # Twice as large as the file's; a box without width is also ringed.
    assert '<rect x="68.0" y="8.0" width="18.0" height="10.0"/>' in figures[0]
    assert figures[0].count("<circle") == 2  # white, and dashes of black on it
    assert "boxes of no area dropped: 1" in figures[0]


def test_an_annotation_of_one_image_leads_to_it(tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path, OBJECTS), "train")
    dataset.findings.notes.clear()
    dataset.findings.note("boxes taken as the bounds of a polygon", f"{tmp_path}/Annotations/clean.xml: object 1")
    (own,) = dirtiest(dataset)
    assert dataset.records[own.index].path.stem == "clean"


def test_twenty_cases_are_kept_those_met_most_often() -> None:
    findings = Findings()
    for number in range(1, 51):
        findings.note("kind", f"file {number}", number)
    findings.note("kind", "none", 0)
    item = findings.notes["kind"]
    assert (item.number, item.first) == (sum(range(51)), "file 1")
    assert [case.number for case in item.cases] == list(range(50, 30, -1))


def test_names_of_files_are_text_and_no_html() -> None:
    findings = Findings()
    for name in ("a<b>.jpg", "c&d.jpg"):
        findings.note("kind", name, boxes=np.zeros((1, 4)))
    table = findings_table(findings)
    assert "<summary>a&lt;b&gt;.jpg</summary>" in table
    assert "c&amp;d.jpg" in table


def test_every_image_without_a_label_file_is_a_case(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    for number in range(4):
        write_image(tmp_path / "images" / "train" / f"{number}.jpg", seed=number)
    (tmp_path / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.4 0.4\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
    dataset = open_dataset(tmp_path, "train", "yolo")
    names = {dataset.records[own.index].path.stem: set(own.kinds) for own in dirtiest(dataset)}
    missing = {"images without a label file, taken as without objects"}
    assert names == {"0": {"boxes taken as the bounds of a polygon"}, "1": missing, "2": missing, "3": missing}
