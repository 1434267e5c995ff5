"""A run that is killed or stopped anywhere goes on and ends with the same weights, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_files import assert_goes_on, states

Train = Callable[..., tuple[int, str]]

KILLED = [
    ("kill before step", 1),
    ("kill after step", 4),
    ("kill in pass", 2),
    ("kill in refresh", 2),
    ("kill in tensors", 400),
    ("kill before rename", 3),
    ("kill in removal", 1),
]


@pytest.mark.parametrize("plan", KILLED, ids=lambda plan: f"{plan[0]} {plan[1]}")
def test_a_killed_run_ends_with_the_same_weights(train: Train, whole: Path, half: Path, plan: tuple) -> None:
    code, text = train("--resume", "--output", half, plan=plan)
    assert code == -9, text
    assert not (half / "distilled" / "model.pt").exists()
    assert_goes_on(train, half, whole)


def test_a_run_killed_again_and_again_ends_with_the_same_weights(train: Train, whole: Path, half: Path) -> None:
    for _ in range(3):
        assert train("--resume", "auto", "--output", half, plan=("kill in step", 3))[0] == -9
    assert_goes_on(train, half, whole)


@pytest.mark.parametrize(("name", "number"), [("SIGTERM", 15), ("SIGINT", 2)])
def test_a_signal_finishes_the_step_and_saves(train: Train, whole: Path, half: Path, name: str, number: int) -> None:
    code, text = train("--resume", "--output", half, plan=(name, 3))
    assert code == 128 + number
    assert text.splitlines()[-1] == f"stopped by {name}; --resume goes on from the last checkpoint"
    assert "Traceback" not in text
    assert states(half)[-1].name == "step-00000003"
    assert_goes_on(train, half, whole)


def test_a_signal_while_prototypes_are_made_ends_at_once(train: Train, whole: Path, half: Path) -> None:
    code, text = train("--resume", "--output", half, plan=("SIGTERM in refresh", 6))
    assert code == 128 + 15
    assert "Traceback" not in text
    assert states(half)[-1].name == "step-00000004"
    assert_goes_on(train, half, whole)


def test_a_second_signal_ends_at_once(train: Train, whole: Path, half: Path) -> None:
    assert train("--resume", "--output", half, plan=("two signals", 3))[0] == -15
    assert states(half)[-1].name == "step-00000002"
    assert_goes_on(train, half, whole)
