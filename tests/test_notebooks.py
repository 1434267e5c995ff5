"""The notebooks run from their first cell to their last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gkd_fast.cli import export, inspect, report

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples/notebooks").glob("*.ipynb"))
COMMANDS = {"export": export, "inspect": inspect, "report": report}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    for cell in cells:
        assert cell["outputs"] == []
        text = "".join(cell["source"])
        if text.startswith("!gkd-fast "):
            name, *arguments = text.split()[1:]
            COMMANDS[name].main(arguments)
        else:
            exec(compile(text, path.name, "exec"), names)
    if path.stem == "own_data":
        for file in ("inspect.html", "report.html", "student.pth", "student.json"):
            assert (tmp_path / file).is_file()
    else:
        assert {"gkd_global", "gkd_foreground", "loss_classifier"} <= set(names["history"][-1])
