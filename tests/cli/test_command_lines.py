"""Bad input on the command line: one clear line, exit code 2, before any training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gkd_fast.cli import evaluate, train
from gkd_fast.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bogus 1", "Unrecognized options: --bogus"),
        ("--epochs many", "Error parsing --epochs: invalid literal"),
        ("--data pascal", "--data"),
        ("--preset nothing", "--preset: expected one of scenes, .*; got 'nothing'"),
        ("--epochs 0", "--epochs: expected a positive number, got 0"),
        ("--lr -1", "--lr: expected a positive number"),
        ("--flip 2", "--flip: expected a number from 0 to 1"),
        ("--alpha -1", "--alpha: expected zero or a positive number"),
        ("--long-side 100", "--long-side: expected at least --short-side 128, got 100"),
        ("--data voc", "--data-root: expected the folder of the voc data set"),
        ("--data voc --data-root /does/not/exist", "/does/not/exist"),
        ("--amp --amp-dtype fp16 --device cpu", "--amp-dtype: fp16 needs a GPU"),
        ("--teacher resnet19", "backbone: expected a torchvision model .*; got 'resnet19'"),
        ("--student vit_b_16 --student-width 1", "backbone vit_b_16: expected stages of strides"),
        ("--teacher-weights BEST", "weights of resnet18: expected one of IMAGENET1K_V1"),
        ("--teacher-weights Nothing_Weights.COCO_V1", "weights: expected a torchvision name"),
        ("--teacher-weights FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "expected the data's classes, lacks disc"),
        ("--teacher-checkpoint nowhere.pt", "nowhere.pt: expected a checkpoint file, found none"),
        ("--classes disc", "classes: expected those of the scenes"),
        ("--resume --output nowhere", "nowhere/config.json: expected the configuration of a run"),
    ],
)
def test_unusable_options_are_named(arguments: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        train.main(arguments.split())
    assert not any(tmp_path.iterdir())


def test_a_resumed_configuration_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"optim": {"epoch": 3}}')
    with pytest.raises(InputError, match="unknown fields in optim: epoch"):
        train.main(["--resume", "--output", str(tmp_path)])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="expected the configuration of a run"):
        train.main(["--resume", "--output", str(tmp_path)])


def test_evaluate_needs_a_checkpoint() -> None:
    with pytest.raises(InputError, match="--checkpoint: expected a detector's file"):
        evaluate.main([])
    with pytest.raises(InputError, match=r"none\.pt: expected a checkpoint file"):
        evaluate.main(["--checkpoint", "none.pt"])


def test_a_shell_sees_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gkd_fast.train", "--data", "voc", "--data-root", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "nowhere" in result.stderr
    assert result.stderr.count("\n") == 1
