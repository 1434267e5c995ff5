"""What the files of two runs have in common."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "data_wait", "seconds")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "distilled" / "model.pt", weights_only=True)["model"]


def states(folder: Path) -> list[Path]:
    return sorted((folder / "distilled" / "checkpoints").glob("step-*"))


def assert_goes_on(train, folder: Path, whole: Path) -> str:
    """Resume; the end is the undisturbed run's."""
    code, text = train("--resume", "--output", folder)
    assert code == 0, text
    expected, found = weights(whole), weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert metrics(folder) == metrics(whole)
    assert [path.name for path in states(folder)] == ["step-00000006", "step-00000008"]
    return text
