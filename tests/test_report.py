"""The page about runs: whole, self-contained, and right about what it shows."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from html_pages import check_page
from PIL import Image
from tiny_runs import tiny_run

from gkd_fast.cli import train
from gkd_fast.cli.report import main
from gkd_fast.config import Config
from gkd_fast.data import Scenes
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.errors import InputError
from gkd_fast.report.charts import line_chart, ticks
from gkd_fast.report.page import scores
from gkd_fast.report.pictures import Gallery, data_url, evenly, square
from gkd_fast.report.runs import Run

TINY = tiny_run("--log-steps 1", train=8, val=8, epochs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seconds."""
    output = tmp_path_factory.mktemp("report") / "first"
    train.main([*TINY, "--output", str(output)])
    return output


def test_the_page_is_whole_and_needs_no_network(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    main([str(folder), "--output", str(output), "--images", "2", "--prototypes", "2", "--score", "0"])
    text = output.read_text()
    elements = check_page(text)
    for title in ("Average precision", "Training", "Prototypes", "most trusted", "least trusted", "Detections"):
        assert title in text
    for condition in ("clean", "blurred", "occluded"):
        assert f"<h4>{condition} " in text
    assert text.count('class="boxed"') == 2 * 3
    assert elements.counts["polyline"] >= 6


def test_several_runs_are_compared(folder: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    output = tmp_path / "page.html"
    main([str(folder), str(second), "--output", str(output), "--no-pictures"])
    text = output.read_text()
    for name in ("first", "second"):
        assert f"{name}: student distilled" in text
        assert f">{name}</a>" in text
    assert "<img" not in text


def test_the_better_student_is_bold() -> None:
    summary = {"teacher": {"AP": 0.5}, "student": {"AP": 0.2, "AP50": 0.4}, "distilled": {"AP": 0.3, "AP50": 0.4}}
    table = scores([Run("a", Path("a"), Config(), summary, [])])
    assert re.findall(r'class="best">([^<]*)', table) == ["30.0"]
    assert "<td>50.0</td><td>&ndash;</td>" in table


def test_curves_go_where_the_values_are() -> None:
    chart = line_chart("a < b", {"x": [(0, 0.0), (10, 4.0)], "none": [(0, float("nan"))]})
    assert "a &lt; b" in chart
    (points,) = re.findall(r'points="([^"]*)"', chart)
    assert points == "52.0,230.0 548.0,14.0"
    assert line_chart("empty", {"none": []}) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 4.0), (0, 7.3), (-0.2, 0.91), (0, 12345), (0, 3e-4)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert found[0] <= low
    assert high - (found[1] - found[0]) < found[-1] <= high
    assert all(float(f"{value:.2g}") == pytest.approx(value) for value in found[:10] if abs(value) < 100)


def test_a_crop_shows_what_lies_under_the_box() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[0, 10:20, 30:40] = 255
    crop = torch.tensor(list(square(image, torch.tensor([30.0, 10, 40, 20]), 26).convert("RGB").tobytes()))
    crop = crop.view(26, 26, 3)
    assert crop[13, 13].tolist() == [255, 0, 0]
    assert crop[0, 0].tolist() == [0, 0, 0]
    with Image.open(
        io.BytesIO(base64.b64decode(data_url(square(image, torch.tensor([-9.0, -9, 9, 9]), 20))[23:]))
    ) as x:
        assert x.size == (20, 20)


def test_a_prototype_seen_mirrored_is_shown_mirrored() -> None:
    gallery = Gallery(PreparedDataset(Scenes(2, size=(64, 80)), short_side=64, long_side=80))
    assert torch.equal(gallery.image(1, flipped=True), gallery.image(1).flip(-1))


def test_positions_are_spread() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(0, 3) == []


def test_metrics_become_events(folder: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    target = tmp_path / "events"
    main([str(folder), "--no-pictures", "--output", str(tmp_path / "page.html"), "--tensorboard", str(target)])
    accumulator = events.EventAccumulator(str(target / "first" / "distilled"))
    accumulator.Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["loss"]) for line in lines if line["phase"] == "distilled" and "loss" in line]
    assert found == [(step, pytest.approx(value)) for step, value in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "RUNS: expected the folder of at least one run"),
        ("nowhere", "nowhere/config.json: expected the configuration of a run"),
        ("FOLDER --score 2", "--score: expected a number from 0 to 1"),
        ("FOLDER --images 0", "--images: expected a positive number"),
        ("FOLDER --output none/page.html", "--output: expected a file in a folder that exists"),
        ("HALF", r"summary\.json: expected the folder of a finished run"),
    ],
)
def test_unusable_options_are_named(arguments: str, message: str, folder: Path, tmp_path: Path, monkeypatch) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(folder / "config.json", half)
    monkeypatch.chdir(tmp_path)
    places = {"FOLDER": str(folder), "HALF": str(half)}
    with pytest.raises(InputError, match=message):
        main([places.get(part, part) for part in arguments.split()])
