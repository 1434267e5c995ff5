"""Training and studies from Python: keywords are the options' names."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tiny_folders import write_voc
from tiny_runs import TINY_MODEL
from torchvision.datasets import VOCDetection

from gkd_fast.cli.train import read
from gkd_fast.config import from_dict
from gkd_fast.errors import InputError
from gkd_fast.runs.settle import with_format
from gkd_fast.runs.train import train
from gkd_fast.study.study import study

TINY = {
    **TINY_MODEL,
    **{"scenes_train": 4, "scenes_val": 2, "short_side": 64, "long_side": 64, "batch_size": 4},
    **{"epochs": 1, "teacher_epochs": 1, "device": "cpu"},
}


def test_a_run_goes_by_its_keywords_and_can_be_resumed(tmp_path: Path) -> None:
    summary = train(**TINY, output=str(tmp_path / "run"), amp=True, amp_dtype="bf16")
    assert summary is not None
    assert summary["folder"] == str(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    line = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    given = read([*line, "--amp", "--amp-dtype=bf16", "--output", str(tmp_path / "run")])
    assert from_dict(stored) == with_format(given)
    assert train(resume=True, output=tmp_path / "run") == summary


def test_data_set_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "VOCdevkit/VOC2012", {name: [("cat", 0, (1, 1, 20, 20))] for name in "abcd"})
    data = VOCDetection(str(tmp_path), image_set="train")
    options = {name: value for name, value in TINY.items() if not name.startswith("scenes")}
    summary = train(train_data=data, val_data=data, **options, output=tmp_path / "run")
    assert summary is not None
    assert summary["classes"] == ["cat"]
    assert "train: 4 images, 4 boxes: cat 4" in capsys.readouterr().out
    config = from_dict(json.loads((tmp_path / "run/config.json").read_text()))
    assert (config.data.data, config.preset) == ("objects", "")
    with pytest.raises(InputError, match="expected the data sets that this run was given from Python"):
        train(resume=True, output=tmp_path / "run")
    with pytest.raises(TypeError, match="train_data, val_data: expected both or neither"):
        train(train_data=data)


def test_settings_start_where_the_command_lines_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data-root: expected the folder of the voc data set"):
        train(preset="bccd")
    with pytest.raises(InputError, match="--resume: expected a study in"):
        study(resume=True, output=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"nowhere/config\.json: expected the configuration of a run"):
        train(resume="on", output=tmp_path / "nowhere")


def test_a_dry_run_is_a_dictionary() -> None:
    found = train(**TINY, dry_run=True)
    assert found is not None
    assert found["student"] > 0
    assert "gkd_global" in found["losses"]


def test_unknown_keywords_are_named() -> None:
    with pytest.raises(TypeError, match=r"epoch: expected an option's name \(epochs\?\)"):
        train(epoch=3)
    with pytest.raises(TypeError, match="seed: expected seeds"):
        study(seed=1)
    with pytest.raises(InputError, match="--methods: expected names of gkd"):
        study(methods=["nothing"], **TINY)


def test_a_study_from_python(tmp_path: Path) -> None:
    content = study(methods=["pkd"], seeds=[3], **TINY, output=tmp_path / "study")
    assert set(content["results"]) == {"control", "pkd"}
    assert content["seeds"] == [3]
    assert content["folder"] == str(tmp_path / "study")


def test_modules_of_the_functions_names_can_be_called() -> None:
    for name in ("train", "study"):
        with pytest.raises(TypeError, match="expected an option's name"):
            importlib.import_module(f"gkd_fast.{name}")(nonsense=1)
