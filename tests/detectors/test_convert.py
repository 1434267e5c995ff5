"""Imported detectors find what their source finds: boxes, scores and classes, against the sources' own inference."""

from __future__ import annotations

import dataclasses
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from published_forwards import FORWARDS, Network, Weights
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet

from gkd_fast.cli import convert as command
from gkd_fast.convert import Source, convert
from gkd_fast.detectors import DetectorSpec, backbones, build_detector
from gkd_fast.detectors.conventions import CONVENTIONS
from gkd_fast.detectors.foreign_files import ForeignCheckpoint, read_foreign
from gkd_fast.errors import InputError
from gkd_fast.runs.detector_file import load_detector

CAFFE = {"mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0), "bgr": True, "stride_in_1x1": True}
NAMES = ("ant", "bee", "cow")
CASES = [(source, kind) for source in ("mmdet", "detectron2") for kind in ("faster_rcnn", "retinanet")]


@pytest.fixture(autouse=True)
def short_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bottleneck a stage under the name of a ResNet, to be quick."""
    real = backbones._classifier

    def build(name: str, **options: Any) -> torch.nn.Module:
        return ResNet(Bottleneck, [1, 1, 1, 1]) if name == "short" else real(name, **options)

    monkeypatch.setattr(backbones, "_classifier", build)


def picture(height: int = 96, width: int = 150) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def network(source: str, **changes: Any) -> Network:
    return dataclasses.replace(Network(**(CAFFE if source == "detectron2" else {})), **changes)


def described(source: str, kind: str, **changes: Any) -> Source:
    return Source(library=source, architecture=kind, **{"backbone": "short", "classes": NAMES} | changes)


def source_result(source: str, kind: str, net: Network) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    state, found = _source_result(source, kind, net)
    return dict(state), found


@lru_cache
def _source_result(source: str, kind: str, net: Network) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    weights = Weights()
    return weights.state, FORWARDS[source, kind](weights, picture(), net)


def imported(
    state: dict[str, Tensor], source: str, kind: str, net: Network, *, text: str = "", **changes: Any
) -> tuple[DetectorSpec, torch.nn.Module]:
    foreign = ForeignCheckpoint({name: value.clone() for name, value in state.items()}, (), text)
    spec, classes, model = convert(foreign, described(source, kind, **changes), "x.pth")
    assert classes == NAMES
    return dataclasses.replace(spec, proposals=net.proposals, detections=net.detections), model


def result(spec: DetectorSpec, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    model = build_detector(spec, 3).double().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        found = model([picture().double() / 255])[0]
    return found["boxes"], found["scores"], found["labels"] - 1


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    """Equal up to the float32 statistics of the input and the float32 boxes of RoIAlign."""
    if len(ours[1]) != len(theirs[1]) or not torch.equal(ours[2], theirs[2]):
        return False
    close = torch.allclose(ours[1], theirs[1], atol=1e-4, rtol=0)
    return close and torch.allclose(ours[0], theirs[0], atol=1e-2, rtol=0)


@pytest.mark.parametrize(("source", "kind"), CASES)
def test_boxes_scores_and_classes_are_the_sources(source: str, kind: str) -> None:
    net = network(source)
    state, theirs = source_result(source, kind, net)
    assert len(theirs[1]) > 20
    assert len(theirs[2].unique()) == 3
    spec, model = imported(state, source, kind, net)
    ours = result(spec, model.state_dict())
    torch.testing.assert_close(ours[2], theirs[2])
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-2, rtol=0)


WRONG = [
    ("mmdet", "faster_rcnn", {"roi_aligned": False}),
    ("mmdet", "faster_rcnn", {"roi_sampling": 2}),
    ("mmdet", "faster_rcnn", {"box_weights": (1.0, 1.0, 1.0, 1.0)}),
    ("mmdet", "faster_rcnn", {"smallest_proposal": 16.0}),
    ("mmdet", "faster_rcnn", {"image_mean": (0.0, 0.0, 0.0)}),
    ("mmdet", "retinanet", {"limit_shrinking": False}),
    ("mmdet", "retinanet", {"rounded_anchors": True}),
    ("mmdet", "retinanet", {"relu_before_p7": True}),
    ("detectron2", "faster_rcnn", {"bgr": False}),
    ("detectron2", "faster_rcnn", {"image_std": (58.395, 57.12, 57.375)}),
    ("detectron2", "faster_rcnn", {"stride_in_1x1": False}),
    ("detectron2", "retinanet", {"limit_shrinking": True}),
    ("detectron2", "retinanet", {"relu_before_p7": False}),
    ("detectron2", "retinanet", {"measured_strides": True}),
]


@pytest.mark.parametrize(("source", "kind", "change"), WRONG)
def test_every_convention_matters(source: str, kind: str, change: dict[str, Any]) -> None:
    net = network(source)
    state, theirs = source_result(source, kind, net)
    spec, model = imported(state, source, kind, net)
    wrong = dataclasses.replace(spec, conventions=dataclasses.replace(spec.conventions, **change))
    assert wrong != spec
    assert not same(result(wrong, model.state_dict()), theirs)


def test_every_field_of_the_conventions_is_tested() -> None:
    named = {name for *_, change in WRONG for name in change} | {"extra_levels"}
    assert named == {field.name for field in dataclasses.fields(CONVENTIONS["mmdet"])}


@pytest.mark.parametrize("relu", [False, True])
def test_extra_levels_on_the_pyramids_own_output(relu: bool) -> None:
    net = network("mmdet", extra_levels="on_output", relu_before_extra_convs=relu)
    state, theirs = source_result("mmdet", "retinanet", net)
    spec, model = imported(state, "mmdet", "retinanet", net, text=f"relu_before_extra_convs={relu}, style='pytorch'")
    assert spec.conventions.extra_levels == "p5"
    assert same(result(spec, model.state_dict()), theirs)


@pytest.mark.parametrize("how", ["option", "text"])
def test_caffe_style_of_mmdet(how: str) -> None:
    net = network("mmdet", **CAFFE)
    state, theirs = source_result("mmdet", "faster_rcnn", net)
    text = "img_norm_cfg = dict(\n    mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\nstyle='caffe'"
    given = {"style": "caffe"} if how == "option" else {"text": text}
    spec, model = imported(state, "mmdet", "faster_rcnn", net, **given)
    assert same(result(spec, model.state_dict()), theirs)
    plain, _ = imported(state, "mmdet", "faster_rcnn", net)
    assert not same(result(plain, model.state_dict()), theirs)


def test_one_box_for_all_classes() -> None:
    net = network("mmdet")
    state, _ = source_result("mmdet", "faster_rcnn", net)
    for end in ("weight", "bias"):
        name = f"roi_head.bbox_head.fc_reg.{end}"
        state[name] = state[name][:4].repeat(3, *[1] * (state[name].dim() - 1))
    weights = Weights(dict(state))
    theirs = FORWARDS["mmdet", "faster_rcnn"](weights, picture(), net)
    for end in ("weight", "bias"):
        state[f"roi_head.bbox_head.fc_reg.{end}"] = state[f"roi_head.bbox_head.fc_reg.{end}"][:4]
    spec, model = imported(state, "mmdet", "faster_rcnn", net)
    assert same(result(spec, model.state_dict()), theirs)


@pytest.mark.parametrize(
    ("source", "backbone", "shape"),
    [
        ("mmdet", "resnet50", {"blocks": (3, 4, 6, 3)}),
        ("detectron2", "resnet101", {"blocks": (3, 4, 23, 3)}),
        ("mmdet", "resnext101_32x4d", {"blocks": (3, 4, 23, 3), "groups": 32, "base_width": 4}),
    ],
)
def test_backbones_by_name(source: str, backbone: str, shape: dict[str, Any]) -> None:
    net = network(source, **shape)
    weights = Weights()
    FORWARDS[source, "retinanet"](weights, picture(32, 32), net)
    weights.state["backbone.bn1.num_batches_tracked"] = torch.tensor(5)
    spec, _ = imported(weights.state, source, "retinanet", net, backbone=backbone)
    assert spec.backbone == backbone


def test_unknown_missing_and_misshapen_weights_are_listed() -> None:
    net = network("mmdet")
    state, _ = source_result("mmdet", "faster_rcnn", net)
    other = {**state, "backbone.stem.0.weight": torch.zeros(1), "mask_head.x": torch.zeros(1)}
    del other["rpn_head.rpn_conv.bias"], other["backbone.layer1.0.bn2.bias"]
    with pytest.raises(InputError) as caught:
        imported(other, "mmdet", "faster_rcnn", net)
    for part in ("backbone.stem.0.weight", "mask_head.x", "rpn.head.conv.0.0.bias", "layer1.0.bn2.bias"):
        assert part in str(caught.value)
    assert "fc6" not in str(caught.value)
    with pytest.raises(InputError, match=r"x\.pth: weights of other shapes: .*fc7.weight is \[1024, 3\]"):
        imported({**state, "roi_head.bbox_head.shared_fcs.1.weight": torch.zeros(1024, 3)}, "mmdet", "faster_rcnn", net)
    with pytest.raises(InputError, match="expected the class outputs of a mmdet retinanet, found none"):
        imported(state, "mmdet", "retinanet", net)
    with pytest.raises(InputError, match=r"unknown: .*backbone\.layer1\.0\.conv1\.weight"):
        imported({**state, "head.cls_score.bias": torch.zeros(27)}, "detectron2", "retinanet", net)
    with pytest.raises(InputError, match="--classes: expected the checkpoint's 3 names, got 2"):
        convert(ForeignCheckpoint(state, (), ""), described("mmdet", "faster_rcnn", classes=("a", "b")), "x.pth")


class Harm:
    """A pickle that writes a file where it is read with the standard unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_the_command_writes_a_teacher_and_runs_no_foreign_code(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "detectron2" if suffix == ".pkl" else "mmdet"
    state, _ = source_result(source, "retinanet", network(source))
    path, output, harmed = tmp_path / f"foreign{suffix}", tmp_path / "new" / "model.pt", tmp_path / "harmed"
    if suffix == ".pkl":
        content = {"model": {n: v.float().numpy() for n, v in state.items()}, "__author__": "them", "x": Harm(harmed)}
        path.write_bytes(pickle.dumps(content))
    else:
        floats = {name: value.float() for name, value in state.items()}
        content = {"state_dict": floats, "meta": {"dataset_meta": {"classes": NAMES}}, "message_hub": Harm(harmed)}
        torch.save(content, path)
    arguments = ["--source", source, "--architecture", "retinanet", "--backbone", "short", "--checkpoint", str(path)]
    command.main([*arguments, "--output", str(output), "--teacher-ap", "0.4", "--classes", *NAMES])
    assert not harmed.exists()
    assert "retinanet of 3 classes" in capsys.readouterr().out
    checkpoint = load_detector(output)
    assert (checkpoint.classes, checkpoint.ap) == (NAMES, 0.4)
    assert checkpoint.spec.conventions.limit_shrinking is (source == "mmdet")
    checkpoint.build()
    if suffix == ".pth":
        assert read_foreign(path).classes == NAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rubbish", "expected a readable checkpoint"),
        (pickle.dumps([1]), "expected a checkpoint with weights, got list"),
        (pickle.dumps({"a": 1}), "expected weights under state_dict or model; found a"),
    ],
)
def test_files_without_weights_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_foreign(path)
    with pytest.raises(InputError, match=r"nowhere\.pth: expected a checkpoint file, found none"):
        read_foreign(tmp_path / "nowhere.pth")
