"""Presets resolve to the settings that they have always had, and files of earlier runs are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gkd_fast.cli import train
from gkd_fast.config import Config, from_dict, replace, to_dict, validate
from gkd_fast.errors import InputError
from gkd_fast.presets import PRESETS, from_presets

# Written by the release before teacher and student were two of one NetworkConfig: under "" the settings without a
# preset, under every other name what differs from them.
RESOLVED: dict[str, Any] = json.loads(Path(__file__).with_name("resolved_presets.json").read_text())


def earlier_file(name: str) -> dict[str, Any]:
    """The config.json that a run of these presets had then."""
    sections = {key: value for key, value in RESOLVED[""].items() if key != "preset"}
    differences = RESOLVED[name] if name else {}
    return {"preset": name} | {key: value | differences.get(key, {}) for key, value in sections.items()}


def parse(*arguments: str) -> Config:
    return train.read(arguments)


@pytest.mark.parametrize("name", RESOLVED)
def test_presets_resolve_as_before_and_earlier_files_are_read(name: str) -> None:
    stored = from_dict(earlier_file(name))
    expected = from_presets(name)
    if stored.data.data == "scenes":  # which "auto" stands for where no folder is named
        assert (expected.data.data, expected.data.train_split, expected.data.val_split) == ("auto", "", "")
        expected = replace(expected, "data", data="scenes", train_split="train", val_split="val")
    assert stored == expected
    assert from_dict(json.loads(json.dumps(to_dict(stored)))) == stored


def test_all_presets_are_pinned() -> None:
    assert set(PRESETS) < set(RESOLVED)


def test_the_run_without_options_has_the_default_settings() -> None:
    assert parse() == Config() == from_presets("scenes")
    assert Config().distill.min_box == 16


def test_a_run_from_before_the_units_keeps_its_loss() -> None:
    """Files of runs name the method; what is written by hand has today's defaults."""
    earlier = from_dict({"distill": {"method": "gkd", "foreground_weight": 1.0}}).distill
    assert (earlier.feature_units, earlier.box_levels, earlier.background_trust) == ("published", "own", "none")
    assert from_dict({"distill": {"foreground_weight": 1.0}}).distill.feature_units == "teacher"


def test_networks_of_an_earlier_file() -> None:
    file = {"model": {"teacher": "resnet50", "teacher_width": 0.5, "student_checkpoint": "a/model.pt"}}
    model = from_dict(file).model
    assert (model.teacher.backbone, model.teacher.width) == ("resnet50", 0.5)
    assert model.student.checkpoint == Path("a/model.pt")
    assert model.student.backbone == Config().model.student.backbone
    assert to_dict(from_dict(file))["model"]["student_checkpoint"] == "a/model.pt"


def test_values_of_another_type_in_a_file_are_named() -> None:
    with pytest.raises(InputError, match="configuration: epochs: expected int, got '3'"):
        from_dict({"optim": {"epochs": "3"}})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = from_presets(name)
    validate(config if config.data.data == "auto" else parse("--preset", name, "--data-root", "/data"))


def test_presets_combine_and_options_win() -> None:
    config = parse("--preset", "bccd,reference", "--data-root", "x", "--prototypes", "5", "--no-cache")
    assert config.data.data == "voc"
    assert config.distill.overlap == "last"
    assert config.distill.prototypes == 5
    assert not config.data.cache
    assert parse("--data", "coco").optim.epochs == 24
    assert parse("--data=coco", "--epochs", "3").optim.epochs == 3
    assert parse("--data", "coco", "--preset", "").optim.epochs == Config().optim.epochs
