"""The bench of a training step: its parts, its table, and that the loops it compares compute the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from keyed_sampler import draw_by_keys

from bench.step import __main__ as command
from bench.step import counts, measure
from bench.step.counts import MAIN_JOB, count, count_step
from bench.step.launches import Launches
from bench.step.loops import Loop, Scale, make_data, make_loop
from bench.step.parts import PARTS, time_parts
from bench.step.scaling import worker
from bench.step.table import table
from gkd_fast.data.loader import build_loader
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.training.distilling import passed_batches
from gkd_fast.training.step import Batch

TINY = Scale(
    teacher="resnet18", student="resnet18", side=96, batch=2, channels=16, head=32, proposals=20, rois=16, images=8
)
TURNS: list[str] = []


@pytest.fixture(scope="module")
def rows() -> Iterator[list[measure.Row]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "EPOCH", 24)
        turn = measure._Timed.turn
        patch.setattr(measure._Timed, "turn", lambda timed: (TURNS.append(timed.variant), turn(timed)))
        # Whole graphs are traced, but no code is generated.
        traced = partial(torch.compile, backend="aot_eager")
        patch.setattr(torch, "compile", lambda step, *, mode, **options: traced(step, **options))
        yield measure.measure(["faster_rcnn"], ["a", "b", "d"], 2, TINY)


def test_every_row_has_its_figures(rows: list[measure.Row]) -> None:
    assert [row.variant for row in rows] == ["a", "b", "d"]
    assert rows[0].ratio == 1
    for row in rows:
        assert row.images_per_second == pytest.approx(TINY.batch / row.step_s)
        assert row.operations > 0
        assert row.product_rate > 0
        assert 0 < row.harvest_share < row.pass_share
    for row in rows[:2]:
        assert set(row.parts_s) == set(PARTS)
        assert min(row.parts_s.values()) > 0
        assert 0 < row.distillation_share < 1
        assert row.graphs is None
    assert rows[2].operations == rows[1].operations
    assert rows[2].parts_s is None
    assert rows[2].graphs == 1


def test_the_loops_take_turns(rows: list[measure.Row]) -> None:
    assert TURNS == ["a", "b", "d", "a", "b", "d"]


def test_operations_are_those_of_the_convolutions_and_products() -> None:
    layer = torch.nn.Linear(8, 5, bias=False)

    def step(batch: torch.Tensor, kappa: float) -> None:
        layer(batch).sum().backward()

    step.compiled = None
    counted = measure._operations(step, torch.ones(3, 8, requires_grad=True))
    assert counted == 3 * 2 * 3 * 8 * 5  # forward, gradients of input and weight


def test_the_table_has_a_line_a_row(rows: list[measure.Row]) -> None:
    lines = table(rows)
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert "a: torchvision, float32, published loops" in lines[2]
    assert "harvest" in lines[0]


def refreshed(loop: Loop, batches: list[Batch]) -> PrototypeBank:
    return loop.distiller.refresh(passed_batches(loop.adapter, batches, torch.device("cpu")))


@pytest.mark.parametrize("detector", measure.DETECTORS)
def test_the_loops_compute_the_same_terms_and_gradients(detector: str) -> None:
    data = make_data(TINY)
    batch, other = build_loader(data, batch_size=4, shuffle=False, seed=0, workers=0)
    found = []
    for variant in "ab":
        loop = make_loop(variant, detector, TINY, data.classes)
        bank = found[0][2] if found else refreshed(loop, [batch, other])
        loop.distiller.bank = bank
        images, targets = loop.prepare((batch[0], [{**t, "draw": t["image_id"]} for t in batch[1]]))
        if variant == "a":
            draw_by_keys(loop.adapter.model, targets)
        own = loop.student_pass(images, targets)
        terms = {**own.losses, **loop.distil(own, images, 1.0)}
        torch.stack(list(terms.values())).sum().backward()
        gradient = next(loop.adapter.model.backbone.parameters()).grad
        found.append((terms, gradient, bank))
    (terms, gradient, _), (expected, expected_gradient, _) = found
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].float(), value, rtol=1e-3, atol=1e-6)
    assert (gradient - expected_gradient).norm() <= 1e-2 * expected_gradient.norm()


def test_the_parts_end_with_the_gradients_of_a_whole_step() -> None:
    data = make_data(TINY)
    batches = list(build_loader(data, batch_size=4, shuffle=False, seed=0, workers=0))
    gradients = []
    for whole in (True, False):
        loop = make_loop("b", "faster_rcnn", TINY, data.classes)
        refreshed(loop, batches)
        torch.manual_seed(3)
        if whole:
            loop(batches[0], 1.0)
        else:
            time_parts(loop, iter(batches))
        gradients.append([parameter.grad for parameter in loop.trainable if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_one_process_of_the_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    found = worker(1, TINY)
    assert found["images_per_second"] > 0
    assert found["rank"] == 0


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "Scale", lambda: TINY)
    monkeypatch.setattr(measure, "EPOCH", 24)
    path = tmp_path / "rows.json"
    assert command.main(["--variants", "c", "--detectors", "retinanet", "--steps", "1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["variant"] == "c"
    assert row["ratio"] is None
    assert "| retinanet | c: ours, --amp |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--variants", "z"], ["--json", "/nowhere/rows.json"]])
def test_wrong_options_end_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_kernels_and_waits_of_the_main_job() -> None:
    rows = {(row.detector, row.variant): row for row in count(measure.DETECTORS, ["a", "b", "c"], MAIN_JOB)}
    assert all(row.waits == 0 for (_, variant), row in rows.items() if variant != "a")
    for (_, variant), row in rows.items():
        if variant != "a":
            assert row.kernels <= (1300 if variant == "b" else 1050)
            assert row.kernels_detector <= 120
    assert rows["faster_rcnn", "a"].waits > 100
    assert rows["retinanet", "a"].waits > 100


@pytest.mark.parametrize("detector", measure.DETECTORS)
def test_the_detector_launches_as_much_for_any_number_of_images(detector: str) -> None:
    found = []
    for batch in (2, 4):
        scale = dataclasses.replace(MAIN_JOB, batch=batch, side=96, images=8)
        data = make_data(scale)
        loop = make_loop("c", detector, scale, data.classes, compiled=False, published=False)
        found.append(count_step(loop, data, scale).detector)
    assert found[0] == found[1]


def test_the_default_settings_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[Settings] = []
    monkeypatch.setattr(counts, "count_step", lambda loop, *_: settings.append(loop.distiller.settings) or Launches())
    count(["faster_rcnn"], ["a", "c"], dataclasses.replace(MAIN_JOB, side=64, images=2))
    assert settings[0].feature_units == "published"
    assert settings[1] == Settings()
