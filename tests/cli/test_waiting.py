"""The policy by which OpenMP's threads wait, set once for all commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gkd_fast.cli.waiting import limit_spinning


def spins(**environment: str) -> str:
    """What a command finds, in a process of its own, torch not being loaded."""
    free = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, sys\nimport gkd_fast.cli.main as main\nassert 'torch' not in sys.modules\n"
    code += "main.limit_spinning(os.environ)\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**free, **environment}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commands_set_it_before_torch_is_loaded() -> None:
    assert spins() == "10000"


def test_a_policy_of_the_user_stays() -> None:
    assert spins(GOMP_SPINCOUNT="7") == "7"
    assert spins(OMP_WAIT_POLICY="passive") == "None"


def test_once_torch_is_loaded_it_would_be_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert not limit_spinning(environment)
    assert environment == {}
    monkeypatch.delitem(sys.modules, "torch")
    assert limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": "10000"}


def test_every_command_goes_through_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from gkd_fast.cli import main
    from gkd_fast.runs import exits

    seen = []
    monkeypatch.setattr(main, "limit_spinning", lambda environment: seen.append(environment is os.environ))
    monkeypatch.setattr(exits, "run_command", lambda function, arguments: None)
    for name in main.COMMANDS:
        main.run(name, [])
    assert seen == [True] * len(main.COMMANDS)
