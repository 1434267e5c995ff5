"""Every example runs with the real library: finite named terms, gradients for the student, weights that move."""

from __future__ import annotations

import csv
import importlib
import math
from pathlib import Path

import pytest
import torch

from gkd_fast.distiller import Distiller

SMALL = ["--images", "6", "--size", "96", "--batch", "2"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("gkd_global", "gkd_foreground", "gkd_background")
LOOPS = [
    (None, "own_network"),
    ("ultralytics", "ultralytics_yolo", "yolo11"),
    ("ultralytics", "ultralytics_yolo", "yolo26"),
    ("transformers", "transformers_dfine"),
    ("transformers", "transformers_detr"),
    (None, "torchvision_detectors", "fcos"),
    (None, "torchvision_detectors", "ssdlite"),
    (None, "torchvision_detectors", "faster_rcnn"),
    (None, "torchvision_detectors", "retinanet"),
]


@pytest.mark.parametrize("example", LOOPS, ids=lambda example: "-".join(example[1:]))
def test_own_loops(example: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    library, name, *arguments = example
    if library:
        pytest.importorskip(library)
    watched = []
    monkeypatch.setattr(Distiller, "forward", _watching(Distiller.forward, watched))
    history = importlib.import_module(name).main([*arguments, *SMALL, "--steps", "3"])
    assert len(history) == 3
    for values in history:
        assert set(values) == {"loss", *NAMES}
        assert all(map(math.isfinite, values.values()))
        assert min(values["gkd_foreground"], values["gkd_background"]) > 0
    student, before, term_gradients = watched[0]
    assert all(term_gradients), "each level's terms reach the student"
    moved = [not torch.equal(value, before[key]) for key, value in student.named_parameters() if value.requires_grad]
    assert sum(moved) > 0.9 * len(moved)


def test_ultralytics_trainer(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    run = importlib.import_module("ultralytics_trainer").main([*SMALL, "--epochs", "2", "--output", str(tmp_path)])
    rows = list(csv.DictReader((run / "results.csv").open()))
    assert [float(row[f"train/{name}"]) >= 0 for row in rows for name in NAMES] == [True] * 6
    assert float(rows[1]["train/gkd_background"]) < float(rows[0]["train/gkd_background"])
    assert (run / "weights/last.pt").exists()


def test_transformers_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    history = importlib.import_module("transformers_rtdetr").main([*SMALL, "--steps", "3", "--output", str(tmp_path)])
    assert len(history) == 3
    assert all(math.isfinite(line[name]) for line in history for name in ("loss", *NAMES))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    if path.stem != "cells":  # what they share
        assert len(path.read_text().splitlines()) <= 60


def test_real_images(real_data) -> None:
    root = real_data("bccd")
    history = importlib.import_module("own_network").main([*SMALL, "--steps", "2", "--data-root", str(root)])
    assert all(map(math.isfinite, history[-1].values()))


def _watching(forward, watched):
    """Distiller.forward that notes the student, its weights before, and whether each level's terms reach it."""

    def wrapped(self, *args, **options):
        student = self._student.inner
        maps = [found for tap in self._student.taps for found in _maps(tap.value)]
        terms = forward(self, *args, **options)
        if not watched:
            gradients = torch.autograd.grad(sum(terms.values()), maps, retain_graph=True)
            before = {name: value.detach().clone() for name, value in student.named_parameters()}
            watched.append((student, before, [bool(gradient.abs().sum() > 0) for gradient in gradients]))
        return terms

    return wrapped


def _maps(value):
    from gkd_fast.watching import maps_in

    return maps_in(value)
