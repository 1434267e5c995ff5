"""A run's detector in a user's own program."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import FasterRCNN, RetinaNet

import gkd_fast
from gkd_fast.config import Config, replace, to_dict
from gkd_fast.data import Scenes
from gkd_fast.detectors import DetectorSpec, adapt, build_detector
from gkd_fast.evaluation.one_image import detect_image
from gkd_fast.runs.detector_file import load_detector, save_detector

KINDS = {"faster_rcnn": FasterRCNN, "retinanet": RetinaNet}
SIDES = {"short_side": 96, "long_side": 128}


def save(folder: Path, detector: str) -> Path:
    torch.manual_seed(0)
    spec = DetectorSpec(detector=detector, backbone="mobilenet_v2", width=0.1, channels=16, head=16, proposals=20)
    model = build_detector(spec, 2)
    for name, parameter in model.named_parameters():
        if "cls_logits.bias" in name:
            torch.nn.init.normal_(parameter)
        elif "ion_head.conv" in name and parameter.dim() == 4:  # outputs that hardly depend on the image's rounding
            torch.nn.init.normal_(parameter, std=0.01)
    config = replace(Config(), "data", **SIDES)
    path = folder / "model.pt"
    save_detector(path, model, spec, ("cat", "dog"), to_dict(config))
    return path


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save(tmp_path, request.param)


def test_it_is_torchvisions_detector_with_the_weights_and_its_classes(path: Path) -> None:
    checkpoint = load_detector(path)
    detector = gkd_fast.load(str(path))
    assert type(detector) is KINDS[checkpoint.spec.detector]
    assert not any(module.training for module in detector.modules())
    assert detector.classes == copy.deepcopy(detector).classes == ("cat", "dog")
    state = detector.state_dict()
    assert state.keys() == checkpoint.model.keys()
    assert all(torch.equal(state[name], value) for name, value in checkpoint.model.items())


def test_images_of_any_size_are_resized_as_in_training(path: Path) -> None:
    detector = gkd_fast.load(path)
    plain = load_detector(path).build().eval()
    images = [Scenes(1, size=size)[0][0].as_subclass(torch.Tensor) for size in ((190, 310), (240, 200), (96, 128))]
    for image in images:
        with torch.no_grad():
            (own,) = detector([image / 255])
        expected = detect_image(plain, image, **SIDES)
        assert len(expected["boxes"])
        close = (own["boxes"][:, None] - expected["boxes"]).abs().amax(2) < 1  # uint8 images are rounded in between
        same = close & ((own["scores"][:, None] - expected["scores"]).abs() < 0.01)
        assert same.any(0).float().mean() > 0.9


def test_it_can_be_trained_further(path: Path) -> None:
    detector = gkd_fast.load(path).train()
    image, box = torch.rand(3, 200, 300), torch.tensor([[30.0, 20.0, 130.0, 180.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1])}]
    resized = detector.transform([image], targets)[1][0]["boxes"]
    assert torch.equal(resized, box * torch.tensor([128 / 300, 85 / 200]).repeat(2))
    assert torch.equal(targets[0]["boxes"], torch.tensor([[30.0, 20.0, 130.0, 180.0]]))
    sum(detector([image], targets).values()).backward()
    assert adapt(detector).model is detector


def test_files_that_are_none_are_value_errors(tmp_path: Path) -> None:
    damaged = save(tmp_path, "retinanet")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    state = tmp_path / "state.pt"
    torch.save({"weight": torch.zeros(2)}, state)
    for path, message in (
        (tmp_path / "none.pt", "expected a checkpoint file, found none"),
        (tmp_path, "expected a checkpoint file, found a folder"),
        (damaged, "expected a readable checkpoint"),
        (state, "expected a detector checkpoint of gkd_fast"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            gkd_fast.load(path)
        assert str(path) in str(error.value)
