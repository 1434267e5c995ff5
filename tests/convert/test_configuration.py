"""Configurations are read as literals, and nothing in them is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd_fast.convert import detectron2
from gkd_fast.convert.configuration import Section, Unread, read_python, read_yaml
from gkd_fast.errors import InputError


def test_literals_calls_of_dict_names_and_arithmetic() -> None:
    text = """
_base_ = []
norm = dict(type='BN', requires_grad=True)
size = 8
model = dict(
    std=[1.0, 1.0, 1.0,],
    norm_cfg=norm,
    scales=[size * 2, -size, size / 4],
    pairs={'a': (1, 2)},
    limit=float('inf'),
    more=[1] + [2] * 2,
    **dict(extra=None))
"""
    model = read_python(text, "x")["model"]
    assert model["std"] == [1.0, 1.0, 1.0]
    assert model["norm_cfg"] == {"type": "BN", "requires_grad": True}
    assert model["scales"] == [16, -8, 2.0]
    assert model["pairs"] == {"a": (1, 2)}
    assert model["limit"] == float("inf")
    assert model["more"] == [1, 2, 2]
    assert model["extra"] is None


def test_nothing_is_run(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    text = f"import os\nx = __import__('pathlib').Path({str(harmed)!r}).touch()\ny = dict(a=open({str(harmed)!r}, 'w'))"
    values = read_python(text, "x")
    assert not harmed.exists()
    assert isinstance(values["x"], Unread)
    assert isinstance(values["y"]["a"], Unread)
    with pytest.raises(InputError, match=r"x: y.a = open\(.*\) cannot be taken over; expected a literal value"):
        Section(values, "", "x").section("y").get("a")
    assert isinstance(read_python("x = [0] * 10 ** 9\ny = 2 ** 10 ** 9\nz = [0] * 99999", "x")["z"], Unread)


def test_base_files_are_merged(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.py").write_text("model = dict(a=dict(x=1, y=2), b=dict(z=3))\nwidth = 7")
    over = "model = dict(a=dict(y=5), b=dict(_delete_=True, w=4), c={{_base_.width}}, d=_base_.width)"
    text = f"_base_ = './base/model.py'\n{over}"
    assert read_python(text, "x", tmp_path)["model"] == {"a": {"x": 1, "y": 5}, "b": {"w": 4}, "c": 7, "d": 7}
    with pytest.raises(InputError, match=r"x: expected its base file \./base/model\.py"):
        read_python(text, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", "x: expected a configuration in Python; .* was never closed"),
        ("with read_base():\n    from .a import *", r"x: imports its bases \(read_base\)"),
        ("x = <object at 0x7f>", "x: expected a configuration in Python"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_python(text, "x")
    assert "\n" not in str(caught.value)


def test_yaml_with_bases_and_tags(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL:\n  A: 1\n  B:\n    C: !!python/tuple [1, 2]\n")
    over = tmp_path / "over.yaml"
    over.write_text('_BASE_: base.yaml\nMODEL:\n  B:\n    D: !!python/object/apply:eval ["[x for x in [1]]"]\n')
    model = read_yaml(over)["MODEL"]
    assert model["A"] == 1
    assert model["B"]["C"] == (1, 2)
    with pytest.raises(InputError, match=r"B.D = \[x for x in \[1\]\] cannot be taken over; expected a literal"):
        Section(model, "", "x").section("B").get("D")
    for content, message in (("[1, 2]", "got list"), ("a: [", "expected a configuration in YAML")):
        over.write_text(content)
        with pytest.raises(InputError, match=message):
            read_yaml(over)


FASTER = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]]},
    "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"META_ARCHITECTURE": "RetinaNet"}, "META_ARCHITECTURE = 'RetinaNet' .* GeneralizedRCNN, as the weights"),
        ({"RESNETS": {"DEFORM_ON_PER_STAGE": [False, True, True, True]}}, "DEFORM_ON_PER_STAGE"),
        ({"FPN": {"NORM": "GN"}}, "FPN.NORM = 'GN'"),
        ({"ANCHOR_GENERATOR": {"SIZES": [[32], [64]]}}, "SIZES = .* expected 5 levels"),
        ({"ANCHOR_GENERATOR": {"OFFSET": 0.5}}, "OFFSET = 0.5"),
        (
            {"ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 14}},
            "POOLER_RESOLUTION = 14",
        ),
        ({"PIXEL_MEAN": [1.0]}, "PIXEL_MEAN = .* expected 3 numbers"),
    ],
)
def test_detectron2s_settings_are_taken_over_or_refused_by_name(change: dict, message: str) -> None:
    found = detectron2.describe({"MODEL": FASTER}, "faster_rcnn", "x")
    assert found.sides == (800, 1333)
    assert found.conventions["candidates"] == 6000
    with pytest.raises(InputError, match=message):
        detectron2.describe({"MODEL": {**FASTER, **change}}, "faster_rcnn", "x")
