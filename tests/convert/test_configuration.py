"""Configurations are read as literals, and nothing in them is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd_fast.convert import detectron2
from gkd_fast.convert.configuration import Section, Unread, read_python, read_python_file, read_yaml
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


def test_statements_after_the_first() -> None:
    text = """
import os
sizes = strides = (8, 16,)
width: int = 2
width *= 2 ** 3
first, second = [5, 6]
model = dict(head=dict(type='A', scales=tuple([1, *range(2, 4)])), flag=not True)
model['head']['more'] = {'x': +1}
model.update(dict(neck=7 // 2))
head = model['head']
head['type'] = 'B'
"""
    values = read_python(text, "x")
    assert values["strides"] == values["sizes"] == (8, 16)
    assert (values["width"], values["first"], values["second"]) == (16, 5, 6)
    assert values["model"] == {
        "head": {"type": "B", "scales": (1, 2, 3), "more": {"x": 1}}, "flag": False, "neck": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "for k in range(3): model['depth'] = k",
        "if 1: model = dict(depth=3)",
        "model.pop('depth')",
        "model['depth'][0] = 3",
        "model.depth = 101",
        "model |= other",
        "del model['depth']",
    ],
)
def test_what_a_statement_may_have_changed_is_not_known(statement: str) -> None:
    values = read_python(f"model = dict(depth=50)\nother = dict(x=1)\n{statement}", "x")
    if statement == "model |= other":
        assert values["model"] == {"depth": 50, "x": 1}
        return
    assert isinstance(values["model"], Unread)
    with pytest.raises(InputError, match=r"x: model = .* cannot be taken over; expected a literal value"):
        Section(values, "", "x").section("model")


def test_bases_of_themselves_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.py", "_base_ = ['./b.py']"), ("b.py", "_base_ = 'a.py'")):
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"a\.py: expected base files, got one that is a base of itself"):
        read_python_file(tmp_path / "a.py")
    (tmp_path / "c.yaml").write_text("_BASE_: c.yaml")
    with pytest.raises(InputError, match=r"c\.yaml: expected base files, got one that is a base of itself"):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "d.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"d\.py: expected a configuration in Python"):
        read_python_file(tmp_path / "d.py")


def test_nothing_is_run(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    text = f"import os\nx = __import__('pathlib').Path({str(harmed)!r}).touch()\ny = dict(a=open({str(harmed)!r}, 'w'))"
    values = read_python(text, "x")
    assert not harmed.exists()
    assert isinstance(values["x"], Unread)
    assert isinstance(values["y"]["a"], Unread)
    with pytest.raises(InputError, match=r"x: y.a = open\(.* cannot be taken over; expected a literal value"):
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
    over.write_text(
        '_BASE_: base.yaml\nMODEL:\n  B:\n    D: !!python/object/apply:eval ["open(1)"]\n'
        '  E: !!python/object/apply:eval ["[[x, x * 2**(1.0/2)] for x in [32, 64 ]]"]\n'
    )
    model = read_yaml(over)["MODEL"]
    assert model["A"] == 1
    assert model["B"]["C"] == (1, 2)
    assert model["E"] == [[32, 32 * 2**0.5], [64, 64 * 2**0.5]]
    over.write_text('_BASE_: [base.yaml]\nMODEL:\n  W: "(20.0, 20.0, 10.0, 10.0)"\n  N: ""\n  F: 5e-1\n')
    model_of_strings = read_yaml(over)["MODEL"]
    assert (model_of_strings["W"], model_of_strings["N"]) == ((20.0, 20.0, 10.0, 10.0), "")
    assert (model_of_strings["F"], model_of_strings["A"]) == (0.5, 1)
    with pytest.raises(InputError, match=r"B.D = open\(1\) cannot be taken over; expected a literal"):
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
        ({"FPN": {"FUSE_TYPE": "avg"}}, "FPN.FUSE_TYPE = 'avg'"),
        ({"BACKBONE": {}}, r"BACKBONE.NAME = 'build_resnet_backbone' \(by default\) cannot be taken over"),
        ({"RPN": {"IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"]}}, "RPN.IN_FEATURES = "),
        ({"ROI_BOX_HEAD": {**FASTER["ROI_BOX_HEAD"], "POOLER_TYPE": "ROIPool"}}, "POOLER_TYPE = 'ROIPool'"),
        ({"ROI_BOX_HEAD": {**FASTER["ROI_BOX_HEAD"], "USE_SIGMOID_CE": True}}, "USE_SIGMOID_CE = True"),
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


def test_lazy_configurations_are_refused() -> None:
    with pytest.raises(InputError, match=r"x: a LazyConfig; expected the config\.yaml"):
        detectron2.describe({"model": {"_target_": "detectron2.modeling.GeneralizedRCNN"}}, "faster_rcnn", "x")
