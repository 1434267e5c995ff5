"""Trackers get what metrics.jsonl gets, stop no run, and go on with the run that they began."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import TINY_MODEL

from gkd_fast import tracking
from gkd_fast.config import PLAIN, replace, to_dict, validate
from gkd_fast.errors import InputError
from gkd_fast.runs.train import train
from gkd_fast.tracking.numbers import flat

LINES = [
    {"phase": "distilled", "step": 10, "epoch": 0, "loss": 2.5, "gkd_global": 0.5},
    {"phase": "distilled", "event": "prototypes", "epoch": 0, "count": 3},
    {"phase": "distilled", "event": "gradient_norms", "step": 10, "epoch": 0, "gkd_global": 0.25},
    {"phase": "distilled", "step": 20, "epoch": 0, "loss": 1.5, "gkd_global": 0.25},
]
SUMMARY = {"classes": ["a"], "amp": False, "teacher": {"AP": 0.5}, "distilled": {"AP": 0.25, "per_class": {"a": 0.25}}}


class Recorder:
    made: list[Recorder] = []  # noqa: RUF012 - filled by the runs of a test

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings, self.lines, self.summary = folder, settings, [], None
        self.made.append(self)

    def record(self, line: dict[str, Any]) -> None:
        self.lines.append(dict(line))

    def close(self, summary: dict[str, Any] | None) -> None:
        self.summary = summary


class Failing(Recorder):
    def record(self, line: dict[str, Any]) -> None:
        super().record(line)
        raise ConnectionError("no\nnetwork")


def use(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """A tracker in the place of Weights & Biases'."""
    module = ModuleType("gkd_fast.tracking.wandb")
    module.WandbTracker = kind
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setitem(sys.modules, "gkd_fast.tracking.wandb", module)
    monkeypatch.setitem(tracking.TRACKERS, "wandb", ("json", "WandbTracker"))


def feed(folder: Path, name: str, *, finished: bool = True) -> None:
    with tracking.tracked([name], folder, {"optim": {"epochs": 2}}) as trackers:
        for line in LINES:
            trackers.record(line)
        trackers.summary = SUMMARY if finished else None


def test_a_run_hands_over_its_metrics_and_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Recorder)
    size = {"scenes_train": 4, "scenes_val": 2, "short_side": 64, "long_side": 64, "batch_size": 4, "log_steps": 1}
    run = {"epochs": 1, "teacher_epochs": 1, "device": "cpu", "output": tmp_path / "run", "track": ("wandb",)}
    summary = train(**TINY_MODEL, **size, **run)
    (tracker,) = Recorder.made
    stored = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert tracker.lines == stored
    assert {line["phase"] for line in stored} == {"teacher", "student", "distilled"}
    assert {"folder": str(tmp_path / "run"), **tracker.summary} == summary
    assert tracker.settings == json.loads((tmp_path / "run/config.json").read_text())


def test_one_that_fails_is_left_out_and_said(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, Failing)
    feed(tmp_path, "wandb")
    (tracker,) = Recorder.made
    assert (tracker.lines, tracker.summary) == (LINES[:1], None)
    assert capsys.readouterr().err == "warning: --track wandb ends here: no network\n"


def test_one_whose_package_is_not_there_is_an_option_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", ("no_such_package", "MLflowTracker"))
    with pytest.raises(InputError, match="--track: mlflow needs the package mlflow; pip install"):
        validate(replace(replace(PLAIN, "run", track=("mlflow",)), "data", data="scenes"))


def test_numbers_have_names_of_one_level() -> None:
    assert tracking.figures(LINES[0]) == {"loss": 2.5, "gkd_global": 0.5}
    assert tracking.figures(LINES[1]) == {}
    assert tracking.figures(LINES[2]) == {"gradient_norms/gkd_global": 0.25}
    assert tracking.results(SUMMARY) == {"teacher/AP": 0.5, "distilled/AP": 0.25}
    assert flat(to_dict(PLAIN))["optim.epochs"] == PLAIN.optim.epochs


def test_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    feed(tmp_path, "tensorboard")
    accumulator = events.EventAccumulator(str(tmp_path / "tensorboard/distilled"))
    accumulator.Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("loss")] == [(10, 2.5), (20, 1.5)]
    assert [(event.step, event.value) for event in accumulator.Scalars("gradient_norms/gkd_global")] == [(10, 0.25)]
    assert [event.value for event in accumulator.Scalars("AP")] == [0.25]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a data base takes a minute to be made
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    folder = tmp_path / "run-1"
    folder.mkdir()
    feed(folder, "mlflow", finished=False)
    number = json.loads((folder / "tracking.json").read_text())["mlflow"]
    assert client().get_run(number).info.status == "KILLED"
    feed(folder, "mlflow")
    run = client().get_run(number)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run-1")
    assert run.data.params == {"optim.epochs": "2"}
    assert run.data.metrics["distilled/AP"] == 0.25
    history = {(metric.step, metric.value) for metric in client().get_metric_history(number, "distilled/loss")}
    assert history == {(10, 2.5), (20, 1.5)}
    assert json.loads((folder / "tracking.json").read_text()) == {"mlflow": number}


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    feed(tmp_path, "wandb")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    number = json.loads((tmp_path / "tracking.json").read_text())["wandb"]
    (written,) = run.glob(f"run-{number}.wandb")
    content = written.read_bytes()
    for name in (b"distilled/loss", b"distilled/gradient_norms/gkd_global", b"distilled/AP", b"optim.epochs"):
        assert name in content
