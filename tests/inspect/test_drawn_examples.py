"""Drawn examples: the smallest and the largest among them, each box where its object is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from html_pages import pictures
from PIL import Image
from tiny_folders import write_voc

from gkd_fast.data import PreparedDataset, open_dataset
from gkd_fast.inspect.boxes import Boxes
from gkd_fast.inspect.examples import class_examples, spread, whole_image


def test_the_first_and_the_last_are_among_the_examples() -> None:
    assert spread(np.arange(100), 4).tolist() == [0, 33, 66, 99]
    assert spread(np.arange(3), 10).tolist() == [0, 1, 2]
    assert spread(np.arange(0), 10).tolist() == []


@pytest.fixture
def data(tmp_path: Path) -> PreparedDataset:
    """An image of 40 x 30 with white rectangles on black, of which each box is one."""
    rectangles = [(5, 5, 9, 12), (15, 3, 28, 20), (30, 22, 39, 29)]
    objects = {"a": [("x", 0, tuple(value + 1 for value in box)) for box in rectangles]}
    root = write_voc(tmp_path, objects)
    pixels = np.zeros((30, 40), dtype=np.uint8)
    for x1, y1, x2, y2 in rectangles:
        pixels[y1 : y2 + 1, x1 : x2 + 1] = 255
    (root / "JPEGImages" / "a.jpg").unlink()
    Image.fromarray(pixels).save(root / "JPEGImages" / "a.png")
    return PreparedDataset(open_dataset(root, "train"), short_side=60, long_side=80)


def test_a_rectangle_is_drawn_around_its_object(data: PreparedDataset) -> None:
    boxes = Boxes.of(data.dataset)
    sides = np.sqrt(boxes.resized(60, 80).prod(1))
    (row,) = class_examples(data, boxes, sides, 3).values()
    drawn = re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', row)
    shown = pictures(row)
    assert len(drawn) == len(shown) == 3
    for numbers, picture in zip(drawn, shown, strict=True):
        x, y, width, height = (round(float(number)) for number in numbers)
        bright = np.asarray(picture.convert("L")) > 127
        inside = np.zeros_like(bright)
        inside[y : y + height, x : x + width] = True
        # Other objects may be seen around the box: all of it is bright, and what touches it is not.
        assert bright[inside].mean() > 0.93
        ring = np.zeros_like(bright)
        ring[max(y - 6, 0) : y + height + 6, max(x - 6, 0) : x + width + 6] = True
        ring[max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2] = False
        assert bright[ring].mean() < 0.05


def test_examples_go_from_the_smallest_to_the_largest(data: PreparedDataset) -> None:
    boxes = Boxes.of(data.dataset)
    sides = np.sqrt(boxes.resized(60, 80).prod(1))
    (row,) = class_examples(data, boxes, sides, 2).values()
    assert re.findall(r"<figcaption>(\d+) px", row) == [f"{side:.0f}" for side in (sides.min(), sides.max())]


def test_a_whole_image_has_all_its_boxes(data: PreparedDataset) -> None:
    text = whole_image(data, 0, "key")
    assert text.count("<rect") == 3
    assert 'x="10.0" y="10.0" width="10.0" height="16.0"' in text
    assert text.count(">x</text>") == 3
    assert 'viewBox="0 0 80 60"' in text
    assert 'title="' in text
    assert ">a.png<" in text
