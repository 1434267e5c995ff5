"""Exported detectors detect what the original does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet

from gkd_fast.cli import export
from gkd_fast.config import Config, to_dict
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.conventions import CONVENTIONS
from gkd_fast.detectors.fixed_size import FixedSizeDetector
from gkd_fast.detectors.recipe import torchvision_recipe
from gkd_fast.errors import InputError, RunError
from gkd_fast.export import differences, formats, writers
from gkd_fast.runs.detector_file import load_detector, save_detector

TINY = {"backbone": "mobilenet_v2", "width": 0.1, "channels": 16, "head": 16, "anchor_size": 12, "proposals": 60}
KINDS = ("faster_rcnn", "retinanet")


def detector(kind: str, **changes: object) -> tuple[DetectorSpec, FasterRCNN | RetinaNet]:
    """Random weights, large enough for many detections of two classes."""
    torch.manual_seed(1)
    spec = DetectorSpec(detector=kind, **{**TINY, "detections": 30, **changes})
    model = build_detector(spec, 2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "backbone.body" not in name:  # else all scores are nearly the same
                torch.nn.init.kaiming_normal_(value)
            if "cls_logits.bias" in name:
                value.zero_()
    return spec, model.eval()


def checkpoint(kind: str, path: Path, **changes: object) -> Path:
    spec, model = detector(kind, **changes)
    save_detector(path, model, spec, ("cat", "dog"), to_dict(Config()))
    return path


def taken(outputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(part[outputs[1] > 0] for part in outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_outputs_of_one_size_are_torchvisions_detections(kind: str, size: tuple[int, int]) -> None:
    _, model = detector(kind)
    for seed in range(3):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            (expected,) = model([image])
            boxes, scores, labels = outputs = FixedSizeDetector(model, size)(image)
        assert boxes.shape == (30, 4)
        assert len(expected["scores"]) > 5
        got = taken(outputs)
        torch.testing.assert_close(got[0], expected["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(got[1], expected["scores"], atol=1e-5, rtol=0)
        assert torch.equal(got[2], expected["labels"])
        empty = scores == 0
        assert not boxes[empty].any()
        assert not labels[empty].any()


def test_nothing_found_is_all_zero() -> None:
    _, model = detector("faster_rcnn")
    model.roi_heads.score_thresh = 1.0
    with torch.no_grad():
        assert not any(part.any() for part in FixedSizeDetector(model, (64, 64))(torch.rand(3, 64, 64)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_is_compared_and_loads_alone(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, output = checkpoint(kind, tmp_path / "model.pt"), tmp_path / "program.pt2"
    export.main(f"--checkpoint {model} --format torch_export --output {output} --size 64 96".split())
    assert "the same" in capsys.readouterr().out
    program = torch.export.load(output).module()
    # Whatever the image, and however few boxes a level of the pyramid or the suppression leaves.
    for image in (torch.rand(3, 64, 96), torch.zeros(3, 64, 96), torch.eye(96)[:64].expand(3, 64, 96)):
        boxes, scores, labels = program(image)
        assert (boxes.shape, scores.shape, labels.shape) == ((30, 4), (30,), (30,))
        (expected,) = load_detector(model).build().eval()([image])
        found = expected["boxes"], expected["scores"], expected["labels"]
        assert differences(found, taken((boxes, scores, labels))) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_is_compared(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, output = checkpoint(kind, tmp_path / "model.pt"), tmp_path / "graph.onnx"
    export.main(f"--checkpoint {model} --format onnx --output {output} --size 64 96".split())
    assert "the same" in capsys.readouterr().out
    assert output.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("faster_rcnn", {}),
        ("faster_rcnn", {"pyramid_norm": True, "freeze_norm": True}),
        ("faster_rcnn", {"backbone": "regnet_y_400mf", "width": 1.0}),
        ("faster_rcnn", {"builder": "fasterrcnn_mobilenet_v3_large_320_fpn"}),
        ("retinanet", {"backbone": "resnet18", "width": 1.0, "freeze_norm": True}),
    ],
)
def test_the_recipe_builds_the_same_network(kind: str, changes: dict) -> None:
    spec, model = detector(kind, **changes)
    recipe = torchvision_recipe(spec, model, min_size=64, max_size=96)
    assert "gkd_fast" not in recipe
    names: dict = {}
    exec(recipe, names)
    plain = names["detector"].eval()
    assert type(plain) in (FasterRCNN, RetinaNet)
    plain.load_state_dict(model.state_dict(), strict=True)
    image = torch.rand(3, 64, 96)
    (got,), (expected,) = plain([image]), model([image])
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-4, rtol=1e-4)


def test_a_pyramid_that_torchvision_lacks_is_refused() -> None:
    spec, model = detector("faster_rcnn", backbone="swin_t", width=1.0)
    with pytest.raises(InputError, match="does not take this swin_t"):
        torchvision_recipe(spec, model, min_size=64, max_size=96)


@pytest.mark.parametrize("kind", KINDS)
def test_conventions_that_torchvision_lacks_need_another_format(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = checkpoint(kind, tmp_path / "model.pt", conventions=CONVENTIONS["mmdet"])
    with pytest.raises(InputError, match=r"--format: expected torch_export or onnx .* rounded_anchors, .*; got torch"):
        export.main(f"--checkpoint {model} --output {tmp_path / 'plain.pth'}".split())
    assert not (tmp_path / "plain.pth").exists()
    export.main(f"--checkpoint {model} --format torch_export --output {tmp_path / 'a.pt2'} --size 64 96".split())
    assert "the same" in capsys.readouterr().out


def test_plain_weights_come_with_their_recipe(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, output = checkpoint("retinanet", tmp_path / "model.pt"), tmp_path / "plain.pth"
    export.main(f"--checkpoint {model} --output {output}".split())
    assert "the same" in capsys.readouterr().out
    content = json.loads((tmp_path / "plain.json").read_text())
    assert content["labels"] == {"1": "cat", "2": "dog"}
    names: dict = {}
    exec("\n".join(content["python"]), names)
    names["detector"].load_state_dict(torch.load(output, weights_only=True), strict=True)


def test_a_difference_is_found_whatever_the_order() -> None:
    boxes, scores, labels = (
        torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20]]),
        torch.tensor([0.9, 0.8]),
        torch.tensor([1, 2]),
    )
    found = boxes, scores, labels
    swapped = tuple(part.flip(0) for part in found)
    assert differences(found, swapped) == ""
    assert "lacks label 2" in differences(found, (boxes[:1], scores[:1], labels[:1]))
    assert "adds label 2" in differences((boxes[:1], scores[:1], labels[:1]), found)
    assert differences(found, (boxes + 0.1, scores, labels))
    assert differences(found, (boxes, scores + 0.01, labels))
    assert differences(found, (boxes, scores, labels.flip(0)))
    assert differences(found, (boxes[:0], scores[:0], labels[:0]))


def test_a_network_that_differs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("faster_rcnn", tmp_path / "model.pt")
    taken_as_it_is = writers._taken
    monkeypatch.setattr(writers, "_taken", lambda outputs: taken_as_it_is((outputs[0] + 1, *outputs[1:])))
    with pytest.raises(RunError, match=r"program\.pt2: differs from .*model\.pt .*: lacks label"):
        export.main(f"--checkpoint {model} --format torch_export --output {tmp_path / 'program.pt2'}".split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output x.pth", "--checkpoint: expected a file"),
        ("--checkpoint none.pt", "--output: expected a file"),
        ("--checkpoint none.pt --output nowhere/x.pth", "--output: expected a file in a folder that exists"),
        ("--checkpoint none.pt --output x.pth", r"none\.pt: expected a checkpoint file"),
        ("--checkpoint none.pt --output x.pth --size 8 64", "--size: expected a height and a width"),
    ],
)
def test_unusable_options_are_named(arguments: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export.main(arguments.split())


def test_onnx_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "installed", lambda package: False)
    with pytest.raises(InputError, match="onnx needs the package onnxscript"):
        export.main(["--checkpoint", "none.pt", "--format", "onnx", "--output", "x.onnx"])
