"""``gkd-fast`` and ``python -m gkd_fast.COMMAND``, as a shell sees them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gkd_fast
from gkd_fast.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def shell(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_script_is_installed_as_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"gkd-fast": "gkd_fast.cli.main:main"}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed_with_a_line_each(arguments: tuple[str, ...]) -> None:
    result = shell("-m", "gkd_fast", *arguments)
    assert result.returncode == 0
    for name, meaning in COMMANDS.items():
        assert any(line.split() == [name, *meaning.split()] for line in result.stdout.splitlines())


def test_version_and_unknown_commands() -> None:
    assert shell("-m", "gkd_fast", "--version").stdout == f"gkd-fast {gkd_fast.__version__}\n"
    result = shell("-m", "gkd_fast", "distil")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: expected one of {', '.join(COMMANDS)}; got 'distil'\n"


def test_the_list_of_commands_does_without_torch() -> None:
    program = "import sys; from gkd_fast.cli.main import main; main(); sys.exit('torch' in sys.modules)"
    assert shell("-c", program, "--help").returncode == 0


def test_a_command_ends_in_one_line() -> None:
    result = shell("-m", "gkd_fast", "export", "--output", "x.pth")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --checkpoint: expected a file, got nothing; --help shows all options\n"


def test_every_command_has_its_module() -> None:
    for name in COMMANDS:
        module = name.replace("-", "_")
        files = [ROOT / "gkd_fast" / f"{module}.py", ROOT / "gkd_fast" / module / "__main__.py"]
        (entry,) = [file for file in files if file.exists()]
        assert f'run("{name}")' in entry.read_text()
        assert (ROOT / "gkd_fast" / "cli" / f"{module}.py").exists()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_wrong_option_is_one_line_on_any_console(encoding: str) -> None:
    command = [sys.executable, "-m", "gkd_fast", "train", "--epoch", "3"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
    assert result.stderr == "error: Unrecognized options: --epoch, 3 (--epochs?); --help-all shows all options\n"
