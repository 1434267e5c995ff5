"""The main job on a handful of drawn scenes: files, table, resuming, evaluation, and plain torchvision weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run

from gkd_fast.cli import evaluate, train
from gkd_fast.config import Config, from_dict, to_dict
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.errors import InputError
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.runs.detector_file import load_detector
from gkd_fast.training.trainer import Trainer

TINY = tiny_run("--log-steps 1 --teacher-batch-size 6", train=12, val=4, side=96)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job") / "run"
    train.main([*TINY, "--amp", "--amp-dtype", "bf16", "--output", str(folder)])
    return folder


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_holds_configuration_metrics_summary_and_bank(finished: Path) -> None:
    config = from_dict(json.loads((finished / "config.json").read_text()))
    assert config.run.amp
    assert config.model.student.width == 0.1
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("teacher", "student", "distilled"):
        assert {"AP", "AP50", "AP75", "images_per_second"} <= set(summary[name])
        assert (finished / name / "model.pt").exists()
    assert summary["robust_weights"]
    assert all(-1 <= row["weight"] <= 1 for row in summary["robust_weights"].values())
    bank = PrototypeBank.load(finished / "distilled" / "prototypes.pt")
    assert bank.student.shape[2] == 16
    assert bank.teacher.shape[2] == 24


def test_every_loss_term_is_logged(finished: Path) -> None:
    lines = [line for line in read_metrics(finished) if "step" in line]
    assert [line["step"] for line in lines if line["phase"] == "teacher"] == [1, 2]  # 6 of 12 images each
    assert [line["step"] for line in lines if line["phase"] == "student"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["phase"] == "distilled"] == [1, 2, 3, 4, 5, 6]
    detection = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    distillation = {"gkd_global", "gkd_foreground", "gkd_background", "gkd_soft"}
    for line in lines:
        terms = detection | (distillation if line["phase"] == "distilled" else set())
        assert terms == {name for name in line if name.startswith(("loss_", "gkd_"))}
        assert line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-4)
        assert line["images_per_second"] > 0


def test_prototypes_are_refreshed_every_epoch(finished: Path) -> None:
    refreshes = [line for line in read_metrics(finished) if line.get("event") == "prototypes"]
    assert [line["epoch"] for line in refreshes] == [0, 1]
    assert [line.get("images") for line in refreshes] == [12, None]  # of a pass, and of the steps


def test_a_used_folder_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(InputError, match=r"--output: .* holds a run; expected a new folder, or --resume"):
        train.main([*TINY, "--output", str(finished)])


def test_resuming_a_finished_run_repeats_its_table(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "summary.json").read_text()
    train.main(["--resume", "--output", str(finished)])
    assert (finished / "summary.json").read_text() == before
    assert "| student distilled |" in capsys.readouterr().out


def test_an_interrupted_phase_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gkd_fast.training.trainer import Trainer

    # Warm-up outlasts the second interrupted epoch, prototypes are refreshed before and after the interruption.
    options = [*TINY, "--checkpoint-steps", "1"]
    train.main([*options, "--output", str(tmp_path / "whole")])

    step = Trainer._step

    def interrupted(self: Trainer, *arguments) -> None:
        if self.phase.name == "distilled" and self.step == 4 and not resumed:
            raise KeyboardInterrupt
        step(self, *arguments)

    resumed = False
    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main([*options, "--output", str(tmp_path / "part")])
    resumed = True
    train.main(["--resume", "--output", str(tmp_path / "part")])

    whole, part = (
        torch.load(tmp_path / name / "distilled" / "model.pt", weights_only=True)["model"] for name in ("whole", "part")
    )
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_control_and_distilled_student_start_equal(finished: Path) -> None:
    first = {
        line["phase"]: line for line in read_metrics(finished) if line.get("step") == 1 and line["phase"] != "teacher"
    }
    for name in ("loss_objectness", "loss_classifier"):
        assert first["student"][name] == pytest.approx(first["distilled"][name], rel=1e-3)


def test_evaluate_repeats_the_summary(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    evaluate.main(["--checkpoint", str(finished / "student" / "model.pt"), "--json", str(out), "--device", "cpu"])
    summary = json.loads((finished / "summary.json").read_text())["student"]
    figures = json.loads(out.read_text())
    for name in ("AP", "AP50", "AP75", "AR100"):
        assert figures[name] == pytest.approx(summary[name], abs=1e-6)
    assert "AP50" in capsys.readouterr().out


def test_the_student_is_a_plain_torchvision_model(finished: Path) -> None:
    checkpoint = torch.load(finished / "distilled" / "model.pt", weights_only=True)
    plain = build_detector(DetectorSpec(**checkpoint["spec"]), len(checkpoint["classes"]))
    plain.load_state_dict(checkpoint["model"], strict=True)
    assert type(plain).__module__.startswith("torchvision.")


def test_a_trained_teacher_is_taken_as_it_is(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "teacher" / "model.pt"
    train.main([*TINY, "--teacher-checkpoint", str(checkpoint), "--output", str(tmp_path / "run"), "--epochs", "1"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["teacher"]["AP"] == json.loads((finished / "summary.json").read_text())["teacher"]["AP"]
    assert not (tmp_path / "run" / "teacher").exists()


def test_both_students_start_from_a_given_one(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: dict[str, dict[str, torch.Tensor]] = {}

    def seen(self: Trainer) -> float:
        state = self.adapter.model.state_dict()
        begun[self.phase.name] = {name: value.clone() for name, value in state.items()}
        return fit(self)

    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", seen)
    given = ["--student-checkpoint", str(finished / "student" / "model.pt"), "--student-channels", "8"]
    teacher = ["--teacher-checkpoint", str(finished / "teacher" / "model.pt")]
    train.main([*TINY, *given, *teacher, "--output", str(tmp_path / "run"), "--epochs", "1"])
    expected = load_detector(finished / "student" / "model.pt")
    assert set(begun) == {"student", "distilled"}
    for state in begun.values():
        assert all(torch.equal(state[name], value) for name, value in expected.model.items())
    trained = load_detector(tmp_path / "run" / "student" / "model.pt")
    assert trained.spec == expected.spec
    assert any(not torch.equal(trained.model[name], value) for name, value in expected.model.items())


def test_a_student_of_another_kind_is_refused(finished: Path, tmp_path: Path) -> None:
    given = ["--student-checkpoint", str(finished / "student" / "model.pt"), "--detector", "retinanet"]
    with pytest.raises(InputError, match=r"model\.pt: expected a retinanet, got a faster_rcnn"):
        train.main([*TINY, *given, "--output", str(tmp_path / "run")])


@pytest.mark.parametrize("detector", ["retinanet"])
def test_one_stage_detectors_distil_too(tmp_path: Path, detector: str) -> None:
    train.main([*TINY, "--detector", detector, "--epochs", "1", "--output", str(tmp_path / "run")])
    last = read_metrics(tmp_path / "run")[-1]
    assert last["phase"] == "distilled"
    assert {"loss_classification", "loss_bbox_regression", "gkd_global", "gkd_soft"} <= set(last)


def test_a_teacher_of_other_classes_is_refused(finished: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(finished / "teacher" / "model.pt", weights_only=True)
    checkpoint["classes"][2] = "blob"
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(
        InputError, match=r"other\.pt: expected a detector of the classes disc, .* lacks triangle .--cl"
    ):
        train.main([*TINY, "--teacher-checkpoint", str(tmp_path / "other.pt"), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_architecture_is_refused(finished: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(finished / "teacher" / "model.pt", weights_only=True)
    checkpoint["spec"]["channels"] = 32
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: another architecture: .* expected"):
        train.main([*TINY, "--teacher-checkpoint", str(tmp_path / "other.pt"), "--output", str(tmp_path / "run")])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "teacher.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"teacher\.pt: expected a (readable checkpoint|checkpoint file)"):
        train.main([*TINY, "--teacher-checkpoint", str(path), "--output", str(tmp_path / "run")])


def test_configuration_survives_json() -> None:
    config = Config()
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
