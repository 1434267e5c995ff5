"""A study on a handful of drawn scenes: cells, resuming, failures, errors, tables; the notation of methods."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from tiny_runs import tiny_run

from gkd_fast.cli import study, train
from gkd_fast.errors import InputError, RunError
from gkd_fast.methods import Settings
from gkd_fast.methods.grammar import RECOMMENDED, Method
from gkd_fast.study import cell as cells
from gkd_fast.study.interval_chart import Row, interval_chart
from gkd_fast.study.statistics import mean_interval
from gkd_fast.study.tables import markdown, summarise

TINY = tiny_run(train=8, val=2, epochs=1)
METHODS = "--methods gkd fgd@20 --seeds 0 1".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "study"
    study.main([*TINY, *METHODS, "--output", str(folder)])
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path / "model.pt", weights_only=True)["model"]


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_method_and_the_control_has_every_seed(finished: Path) -> None:
    content = json.loads((finished / "study.json").read_text())
    assert {method: set(seeds) for method, seeds in content["results"].items()} == {
        name: {"0", "1"} for name in ("control", "gkd", "fgd@20")
    }
    assert content["summary"]["gkd"]["AP"]["difference"]["count"] == 2
    assert content["failures"] == {}
    table = (finished / "study.md").read_text()
    assert all(f"| {name} |" in table for name in ("teacher", "control", "gkd", "fgd@20"))
    ElementTree.parse(finished / "ap.svg")


def test_cells_differ_by_method_and_seed_alone(finished: Path) -> None:
    fgd = json.loads((finished / "fgd@20" / "seed-1" / "config.json").read_text())
    gkd = json.loads((finished / "gkd" / "seed-0" / "config.json").read_text())
    assert (fgd["distill"]["method"], gkd["distill"]["method"]) == ("fgd", "gkd")
    assert fgd["distill"]["fgd_foreground_weight"][0] == pytest.approx(20 * gkd["distill"]["fgd_foreground_weight"][0])
    assert (fgd["run"].pop("seed"), gkd["run"].pop("seed")) == (1, 0)
    assert {section: fgd[section] for section in ("data", "model", "optim", "run")} == {
        section: gkd[section] for section in ("data", "model", "optim", "run")
    }


def test_a_study_trains_as_the_main_job_does(finished: Path, tmp_path: Path) -> None:
    train.main([*TINY, "--seed", "0", "--output", str(tmp_path / "run")])
    for name, other in {
        "teacher": "teacher",
        "student": "control/seed-0/student",
        "distilled": "gkd/seed-0/distilled",
    }.items():
        assert equal(tmp_path / "run" / name, finished / other), name


def test_seeds_and_methods_change_the_student(finished: Path) -> None:
    assert not equal(finished / "gkd/seed-0/distilled", finished / "gkd/seed-1/distilled")
    assert not equal(finished / "gkd/seed-0/distilled", finished / "control/seed-0/student")
    assert not equal(finished / "gkd/seed-0/distilled", finished / "fgd@20/seed-0/distilled")


def test_only_what_is_missing_is_trained(copied: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied / "gkd" / "seed-1")
    ran = []
    run_cell = cells.run_cell

    def recorded(config, folder: Path, phase: str) -> None:
        ran.append(folder.relative_to(copied).as_posix())
        run_cell(config, folder, phase)

    monkeypatch.setattr(cells, "run_cell", recorded)
    study.main(["--resume", "--output", str(copied)])
    assert ran == ["gkd/seed-1"]
    assert equal(copied / "gkd/seed-1/distilled", finished / "gkd/seed-1/distilled")


def test_the_whole_command_goes_on_as_well(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "study.md").unlink()
    monkeypatch.setattr(cells, "run_cell", lambda *arguments: pytest.fail("everything is finished"))
    study.main([*TINY, *METHODS, "--preset", "scenes", "--output", str(copied), "--resume"])
    assert (copied / "study.md").exists()


def test_a_half_trained_student_goes_on_and_a_failed_one_stops_no_other(
    copied: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gkd_fast.training.trainer import Trainer

    for name in ("gkd/seed-0", "fgd@20/seed-1"):
        shutil.rmtree(copied / name)
    step, started = Trainer._step, []

    def failing(self: Trainer, *arguments) -> None:
        if self.distiller.uses_prototypes and self.step == 1:
            raise RuntimeError("no memory")
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", failing)
    again = ["--resume", "--output", str(copied), "--checkpoint-steps", "1"]
    with pytest.raises(RunError, match=r"1 of 6 students failed, gkd, seed 0: RuntimeError: no memory; --resume"):
        study.main(again)
    assert equal(copied / "fgd@20/seed-1/distilled", finished / "fgd@20/seed-1/distilled")
    assert "- gkd, seed 0: RuntimeError: no memory" in (copied / "study.md").read_text()

    def counted(self: Trainer, *arguments) -> None:
        started.append(self.step)
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", counted)
    study.main(again)
    assert started == [1]
    assert equal(copied / "gkd/seed-0/distilled", finished / "gkd/seed-0/distilled")
    assert json.loads((copied / "study.json").read_text())["failures"] == {}


def test_students_train_side_by_side(copied: Path, finished: Path) -> None:
    for name in ("gkd/seed-0", "control/seed-1"):
        shutil.rmtree(copied / name)
    # A checkpoint that was there, and no longer is: this one fails, the others do not.
    shutil.rmtree(copied / "fgd@20/seed-0")
    (copied / "fgd@20/seed-0/distilled").mkdir(parents=True)
    (copied / "fgd@20/seed-0/distilled/model.pt").mkdir()
    with pytest.raises(RunError, match=r"1 of 6 students failed, fgd@20, seed 0: error: .*model\.pt"):
        study.main(["--resume", "--output", str(copied), "--jobs", "2"])
    assert (copied / "gkd/seed-0/log.txt").exists()
    for name in ("gkd/seed-0/distilled", "control/seed-1/student"):
        assert json.loads((copied / name / "result.json").read_text())["AP"] >= 0
        assert weights(copied / name).keys() == weights(finished / name).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 2", r"--epochs: expected 1 as in .*study\.json, got 2"),
        ("--fgd-temperature 0.4", r"--fgd-temperature: expected 0\.5 as in"),
        ("--seeds 1 0", r"--seeds: expected 0 as the first as in .*, got 1"),
    ],
)
def test_other_settings_than_the_stored_ones_are_refused(finished: Path, options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study.main(["--resume", "--output", str(finished), *options.split()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--methods", "--methods"),
        ("--methods control", "--methods: expected at least one method beside the control"),
        ("--methods gkd nothing", "--methods: expected names of gkd, .* got 'nothing'"),
        ("--methods gkd+gkd", "--methods: expected every name once, got 'gkd\\+gkd'"),
        ("--methods fgd fgd@1.0", "--methods: expected every method once"),
        ("--methods fgd@0", "--methods: expected a positive number behind '@', got 'fgd@0'"),
        ("--methods fgd@much", "--methods: expected a positive number behind '@', got 'fgd@much'"),
        ("--methods fgd@", "--methods: expected a positive number behind '@', got 'fgd@'"),
        ("--methods pkd+robust", "--methods: robust expects one of fgfi, defeat, fgd, got 'pkd\\+robust'"),
        ("--methods crosskd", "crosskd needs the heads of two torchvision RetinaNets"),
        ("--seeds 1 1", "--seeds: expected different numbers"),
        ("--seeds -1", "--seeds"),
        ("--seed 1", "--seed: expected --seeds"),
        ("--terms gkd", "--terms: expected --methods"),
        ("--jobs 0", "--jobs: expected a positive number, got 0"),
        ("--dry-run", "--dry-run: expected gkd-fast train"),
        ("--lr -1", "--lr: expected a positive number"),
        ("--resume", "--resume: expected a study in runs/ or --output, found none"),
        ("--teacher-checkpoint none.pt", r"none\.pt: expected a checkpoint file"),
    ],
)
def test_unusable_options_are_named(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        study.main([*TINY, *options.split()])
    assert not any(tmp_path.iterdir())


def test_a_used_folder_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(InputError, match=r"--output: .* holds a study; expected a new folder, or --resume"):
        study.main([*TINY, "--output", str(finished)])


def test_a_given_teacher_is_evaluated_and_shared(finished: Path, tmp_path: Path) -> None:
    teacher = finished / "teacher" / "model.pt"
    options = ["--methods", "gkd", "--seeds", "1", "--teacher-checkpoint", str(teacher)]
    study.main([*TINY, *options, "--output", str(tmp_path / "study")])
    assert not (tmp_path / "study/teacher/model.pt").exists()
    assert equal(tmp_path / "study/gkd/seed-1/distilled", finished / "gkd/seed-1/distilled")
    before, now = (json.loads((path / "study.json").read_text())["teacher"] for path in (finished, tmp_path / "study"))
    assert now["AP"] == before["AP"]


def test_a_signal_stops_the_students_and_resuming_ends_with_the_same_weights(copied: Path, finished: Path) -> None:
    shutil.rmtree(copied / "gkd/seed-0")
    command = [sys.executable, "-m", "gkd_fast.study", "--resume", "--output", str(copied), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if (copied / "gkd/seed-0/log.txt").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM; --resume goes on" in errors
    study.main(["--resume", "--output", str(copied)])
    assert equal(copied / "gkd/seed-0/distilled", finished / "gkd/seed-0/distilled")


def test_factors_multiply_all_weights_of_a_method_and_nothing_else() -> None:
    base = Settings()
    changed = Method.parse("gkd@2+defeat@0.5+robust").applied(base)
    assert (changed.method, changed.robust_masks) == ("gkd+defeat", True)
    for name in ("global_weight", "foreground_weight", "background_weight", "soft_weight"):
        assert getattr(changed, name) == 2 * getattr(base, name)
    for name in ("foreground", "background", "positive", "negative"):
        assert getattr(changed, f"defeat_{name}_weight") == 0.5 * getattr(base, f"defeat_{name}_weight")
    assert changed.fgd_global_weight == base.fgd_global_weight
    assert Method.parse("pkd@3").applied(base).pkd_weight == (18.0, 30.0)
    assert not Method.parse("fgfi").applied(base).robust_masks


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fgd@1", "fgd"),
        ("robust+fgd@2e1+gkd", "fgd@20+gkd+robust"),
        ("recommended", RECOMMENDED),
        ("recommended+pkd@2", "+".join([*RECOMMENDED.split("+")[:-1], "pkd@2", "robust"])),
    ],
)
def test_a_method_has_one_name(text: str, name: str) -> None:
    assert Method.parse(text).text == name
    assert Method.parse(name) == Method.parse(text)


def figures(value: float) -> dict[str, float]:
    return {"AP": value, "AP50": value, "AP75": value}


def test_differences_are_paired_by_seed() -> None:
    control = {str(seed): figures(value) for seed, value in enumerate([0.10, 0.20, 0.30])}
    # Differences 0.02, 0.03, 0.04: mean 0.03, half width 0.01 * 4.302653 / sqrt(3) = 0.02484138.
    method = {str(seed): figures(value) for seed, value in enumerate([0.12, 0.23, 0.34])}
    study_content = summarise({"control": control, "gkd": method, "pkd": {"2": figures(0.25)}, "cwd": {}})
    difference = study_content["summary"]["gkd"]["AP"]["difference"]
    assert difference["mean"] == pytest.approx(0.03)
    assert difference["half_width"] == pytest.approx(0.02484138, abs=1e-7)
    assert study_content["summary"]["pkd"]["AP"]["difference"] == {
        "mean": pytest.approx(-0.05),
        "half_width": None,
        "count": 1,
    }
    table = markdown({**study_content, "teacher": figures(0.5), "seeds": [0, 1, 2], "failures": {}})
    assert "| gkd | 3 | +3.0 ± 2.5 | +3.0 ± 2.5 | +3.0 ± 2.5 |" in table
    assert "| control | 3 | 20.0 ± 24.8 |" in table
    assert "| pkd | 1 | -5.0 | -5.0 | -5.0 |" in table
    assert "| pkd | - | - | 25.0 |" in table


def test_the_chart_places_values_on_its_axis() -> None:
    rows = [
        Row("control", [10.0, 20.0, 30.0], mean_interval([10.0, 20.0, 30.0])),
        Row("a<b", [20.0], mean_interval([20.0])),
    ]
    chart = ElementTree.fromstring(interval_chart(rows, "AP"))
    name = "{http://www.w3.org/2000/svg}"
    positions = [float(item.get("cx")) for item in chart.iter(f"{name}circle")]
    assert positions[1] - positions[0] == pytest.approx(positions[2] - positions[1], abs=0.2)
    assert positions[3] == positions[1]
    ticks = {item.text: float(item.get("x")) for item in chart.iter(f"{name}text")}
    assert ticks["20"] == pytest.approx(positions[1], abs=0.1)
    assert "a<b" in ticks
