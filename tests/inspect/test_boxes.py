"""Boxes as columns, and the figures of each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_folders import write_voc

from gkd_fast.data import PreparedDataset, Scenes, open_dataset
from gkd_fast.inspect.boxes import Boxes, class_facts, class_table, ordered

OBJECTS = {
    "a": [("dog", 0, (1, 1, 20, 10)), ("cat", 0, (3, 3, 36, 28)), ("dog", 1, (5, 5, 9, 9))],
    "b": [],
    "c": [("dog", 0, (11, 11, 14, 30)), ("dog", 0, (2, 2, 8, 8))],
}


@pytest.fixture
def boxes(tmp_path: Path) -> Boxes:
    return Boxes.of(open_dataset(write_voc(tmp_path, OBJECTS), "train"))


def test_difficult_objects_are_left_out_and_images_keep_their_places(boxes: Boxes) -> None:
    assert boxes.classes == ("cat", "dog")
    assert boxes.image.tolist() == [0, 0, 2, 2]
    assert boxes.label.tolist() == [1, 0, 1, 1]
    assert boxes.corners[0].tolist() == [0, 0, 20, 10]
    assert boxes.per_image().tolist() == [2, 0, 2]
    assert boxes.per_class().tolist() == [1, 3]
    assert boxes.images_per_class().tolist() == [1, 2]


def test_scenes_have_the_boxes_of_their_ground_truth() -> None:
    scenes = Scenes(5, size=(64, 96))
    boxes = Boxes.of(scenes)
    for index in range(5):
        target = scenes[index][1]
        own = boxes.image == index
        np.testing.assert_allclose(boxes.corners[own], target["boxes"].numpy(), atol=1e-4)
        assert (boxes.label[own] + 1).tolist() == target["labels"].tolist()


@pytest.mark.parametrize(("short", "long"), [(60, 100), (60, 70), (15, 400)])
def test_shapes_are_those_of_the_training_samples(short: int, long: int, tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path, OBJECTS), "train")
    data = PreparedDataset(dataset, short_side=short, long_side=long)
    expected = [data[index][1]["boxes"].numpy() for index in range(len(data))]
    expected = np.concatenate([own[:, 2:] - own[:, :2] for own in expected])
    np.testing.assert_allclose(Boxes.of(dataset).resized(short, long), expected, rtol=1e-4)


def test_the_figures_of_a_class(boxes: Boxes) -> None:
    cat, dog = class_facts(boxes, boxes)
    assert (dog.name, dog.train, dog.val, dog.train_images, dog.val_images) == ("dog", 3, 3, 2, 2)
    sides = sorted(np.sqrt(np.prod(shape)) for shape in ((20, 10), (4, 20), (7, 7)))
    assert dog.side == pytest.approx(sides[1])
    assert (cat.small, dog.small) == (1.0, 1.0)  # 34 x 26 is below 32 x 32
    assert cat.side == pytest.approx(np.sqrt(34 * 26))


def test_a_class_without_training_boxes_has_no_sizes(boxes: Boxes) -> None:
    none = Boxes(("cat", "dog", "fox"), boxes.sizes, boxes.image, boxes.label, boxes.corners)
    fox = class_facts(none, none)[2]
    assert (fox.train, fox.train_images) == (0, 0)
    assert np.isnan(fox.side)
    lines = class_table(class_facts(none, none))
    assert lines[3].split() == ["fox", "0", "0", "0", "0", "-", "-"]


def test_of_many_classes_the_most_frequent_and_the_rarest_are_shown(boxes: Boxes) -> None:
    names = tuple(f"class {k}" for k in range(50))
    label = np.repeat(np.arange(50), np.arange(50))
    many = Boxes(names, boxes.sizes, np.zeros(len(label), int), label, np.tile([0.0, 0, 9, 9], (len(label), 1)))
    facts = class_facts(many, many)
    assert [item.train for item in ordered(facts, 400)[0]] == list(range(50))
    assert [item.train for item in ordered(facts, 100)[0]] == list(range(49, -1, -1))
    shown, left = ordered(facts, 10)
    assert [item.train for item in shown] == [49, 48, 47, 46, 45, 4, 3, 2, 1, 0]
    assert left == 40
    assert class_table(facts, most=10)[6] == "... 40 classes between them"
