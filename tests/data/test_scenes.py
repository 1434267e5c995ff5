import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from gkd_fast.data import CONDITIONS, Scenes
from gkd_fast.data.shapes import SHAPES, coverage, window
from gkd_fast.errors import InputError


def test_samples_are_well_formed():
    scenes = Scenes(12, size=(96, 128), seed=3)
    assert len(scenes.classes) >= 8
    for index in range(12):
        image, target = scenes[index]
        boxes = target["boxes"]
        assert isinstance(image, tv_tensors.Image)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 96, 128))
        assert isinstance(boxes, tv_tensors.BoundingBoxes)
        assert 2 <= len(boxes) <= 7
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([128, 96, 128, 96])).all()
        assert target["labels"].dtype == target["condition"].dtype == torch.int64
        assert len(target["labels"]) == len(target["condition"]) == len(boxes)
        assert (target["labels"] >= 1).all()
        assert (target["labels"] <= len(scenes.classes)).all()
        assert (target["image_id"], target["original_size"]) == (index, (96, 128))
        assert image.float().std() > 2


def test_a_scene_depends_on_seed_and_index_alone():
    first, second, other = Scenes(5, seed=1), Scenes(50, seed=1), Scenes(5, seed=2)
    image = first[4][0]
    first[0]
    assert torch.equal(image, second[4][0])
    assert torch.equal(image, first[4][0])
    assert not torch.equal(image, first[3][0])
    assert not torch.equal(image, other[4][0])


def test_ground_truth_is_that_of_the_samples():
    scenes = Scenes(10, seed=5)
    truth = scenes.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(range(10))
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    for index in range(10):
        mine = [a for a in truth["annotations"] if a["image_id"] == index]
        boxes = torch.tensor([a["bbox"] for a in mine])
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(boxes, scenes[index][1]["boxes"].as_subclass(torch.Tensor))
        assert [a["category_id"] for a in mine] == scenes[index][1]["labels"].tolist()


def test_every_class_and_condition_occurs():
    scenes = Scenes(60)
    targets = [scenes[index][1] for index in range(60)]
    labels = torch.cat([target["labels"] for target in targets])
    conditions = torch.cat([target["condition"] for target in targets])
    sizes = torch.cat([(target["boxes"][:, 2:] - target["boxes"][:, :2]).amax(1) for target in targets])
    assert set(labels.tolist()) == set(range(1, 1 + len(scenes.classes)))
    shares = torch.bincount(conditions, minlength=len(CONDITIONS)) / len(conditions)
    assert (shares > 0.05).all()
    assert shares.argmax() == CONDITIONS.index("clean")
    assert sizes[conditions == CONDITIONS.index("small")].max() <= 18


def test_blurred_objects_have_softer_edges():
    scenes = Scenes(60, seed=9)
    steepest: dict[int, list[float]] = {0: [], 2: []}
    for index in range(60):
        image, target = scenes[index]
        grey = image.float().mean(0)
        for box, condition in zip(target["boxes"].int().tolist(), target["condition"].tolist(), strict=True):
            if condition in steepest:
                part = grey[box[1] : box[3], box[0] : box[2]]
                contrast = part.max() - part.min()
                steepest[condition].append(float(part.diff(dim=1).abs().amax() / contrast))
    assert np.median(steepest[2]) < 0.8 * np.median(steepest[0])


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fit_into_the_unit_disc_and_touch_it(name: str):
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j].astype(np.float32)
    inside = SHAPES[name](x, y) < 0
    reach = np.hypot(x, y)[inside].max()
    assert 0.97 < reach <= 1.001
    assert 0.1 < inside.mean() * 9 / np.pi < 1.01


def test_shapes_differ_in_area():
    y, x = np.mgrid[-1.2:1.2:201j, -1.2:1.2:201j].astype(np.float32)
    masks = [shape(x, y) < 0 for shape in SHAPES.values()]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a ^ b).mean() > 0.05


def test_coverage_of_a_disc_is_its_area():
    at = window((64, 64), (30.3, 33.8), 22, 0.7)
    distance = np.hypot(at.u, at.v) - 20
    assert coverage(distance).sum() == pytest.approx(np.pi * 20**2, rel=2e-3)


def test_window_is_clipped_to_the_image():
    at = window((50, 60), (58.0, 2.0), 10, 0.0)
    assert (at.rows, at.columns) == (slice(0, 14), slice(48, 60))
    assert at.u.shape == at.v.shape == (14, 12)
    assert at.u[0, 0] == pytest.approx(-9.5)
    assert at.v[0, 0] == pytest.approx(-1.5)


def test_index_out_of_range():
    with pytest.raises(IndexError, match=r"expected an index in \[0, 3\), got 3"):
        Scenes(3)[3]


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 1, "size": (63, 192)}, {"count": 1, "seed": -1}])
def test_options_out_of_range(options: dict):
    with pytest.raises(InputError, match="expected a"):
        Scenes(**options)
