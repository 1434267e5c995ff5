"""The commands that the READMEs name."""

import runpy
import sys

import pytest


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", ["run", "step", "coco_evaluation", "convolutions", "gpu_report", "gpu_check"])
def test_every_command_is_there_under_its_name(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"bench.{name}", run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out
