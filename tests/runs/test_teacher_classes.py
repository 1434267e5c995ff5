"""A teacher of more classes than the data, or in another order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_folders import write_voc

from gkd_fast.config import Config, replace
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.errors import InputError
from gkd_fast.runs.data import read_images
from gkd_fast.runs.detector_file import load_detector, save_detector
from gkd_fast.runs.job import Job

KNOWN = ("dog", "bird", "cat")


def teacher(path: Path, detector: str) -> Path:
    torch.manual_seed(0)
    spec = DetectorSpec(detector=detector, backbone="mobilenet_v2", width=0.1, channels=16, head=16)
    save_detector(path, build_detector(spec, len(KNOWN)), spec, KNOWN, {})
    return path


@pytest.fixture(params=["faster_rcnn", "retinanet"])
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    for split in ("train", "val"):
        objects = {f"{split}{name}": [("cat", 0, (1, 1, 20, 20)), ("dog", 0, (5, 5, 25, 25))] for name in "ab"}
        write_voc(tmp_path / "voc", objects, split=split)
    made = replace(Config(), "data", data="voc", data_root=tmp_path / "voc")
    made = replace(made, "model", detector=request.param)
    path = teacher(tmp_path / "teacher.pt", request.param)
    own = type(made.model.teacher)(backbone="mobilenet_v2", width=0.1, channels=16, head=16, checkpoint=path)
    return replace(made, "model", teacher=own)


def outputs(model: torch.nn.Module, name: str) -> torch.Tensor:
    """Scores of a class for the same input, whatever its number: rows of the last layer."""
    state = model.state_dict()
    names = ("box_predictor.cls_score.weight", "classification_head.cls_logits.weight")
    key = next(key for key in state if key.endswith(names))
    rows = state[key].unflatten(0, (-1, len(model.classes) + 1))
    return rows[:, 1 + model.classes.index(name)]


def test_the_teachers_order_is_followed_and_its_further_classes_cut(config: Config, capsys) -> None:
    assert read_images(config).classes == ("cat", "dog")
    job = Job(config)
    assert job.data.classes == ("dog", "cat")
    assert "in the teacher's order, dog, cat, its outputs for 1 further classes are left out" in capsys.readouterr().out
    labels = job.data.train[0][1]["labels"].tolist()
    assert labels == [2, 1]
    whole, cut = load_detector(config.model.teacher.checkpoint).build(), job.given["teacher"]
    whole.classes, cut.classes = KNOWN, job.data.classes
    for name in cut.classes:
        assert torch.equal(outputs(whole, name), outputs(cut, name))


def test_an_order_that_is_asked_for_stays(config: Config) -> None:
    job = Job(replace(config, "data", classes=("cat", "dog")))
    assert job.data.classes == ("cat", "dog")
    whole, cut = load_detector(config.model.teacher.checkpoint).build(), job.given["teacher"]
    whole.classes, cut.classes = KNOWN, job.data.classes
    assert all(torch.equal(outputs(whole, name), outputs(cut, name)) for name in cut.classes)


def test_a_class_that_it_does_not_know(config: Config) -> None:
    path = config.data.data_root / "Annotations/traina.xml"
    path.write_text(path.read_text().replace("cat", "cow"))
    with pytest.raises(
        InputError, match=r"teacher\.pt: expected a detector of the classes cat, cow, dog; .* lacks cow"
    ):
        Job(config)
    assert Job(replace(config, "data", classes=("cat",))).data.classes == ("cat",)
