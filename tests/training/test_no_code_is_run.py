"""A checkpoint from anywhere runs no code."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gkd_fast.errors import InputError
from gkd_fast.training import states
from gkd_fast.training.states import States

PACKAGE = Path(__file__).resolve().parents[2] / "gkd_fast"


class Evil:
    """Touches a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self):
        return Path.touch, (Path(self.file),)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.rand(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    return module, optimizer


def saved(folder: Path) -> States:
    own = States(folder, 3, *trained())
    own.save(1, {})
    return own


def resealed(state: Path) -> None:
    """Checksums of what an attacker wrote: they are no secret."""
    (state / "checksums.json").unlink()
    (state / "checksums.json").write_text(states.json.dumps(states._checksums(state)))


def test_a_state_is_read_back(tmp_path: Path):
    own = saved(tmp_path)
    before = own.modules[0].weight.detach().clone()
    other = States(tmp_path, 3, *trained())
    assert other.load()["step"] == 1
    assert torch.equal(other.modules[0].weight, before)


def test_an_index_that_asks_for_code_is_refused(tmp_path: Path):
    own = saved(tmp_path)
    state = tmp_path / "step-00000001"
    index = pickle.loads((state / ".metadata").read_bytes())
    index.planner_data = Evil(tmp_path / "ran")
    (state / ".metadata").write_bytes(pickle.dumps(index))
    resealed(state)
    with pytest.raises(InputError, match=r"it asks for pathlib\.Path\.touch|it asks for builtins\.getattr"):
        own.load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os.system", "pickle.loads", "io.open"])
def test_modules_that_the_index_module_imports_are_out_of_reach(tmp_path: Path, name: str):
    module, _, function = name.rpartition(".")
    dotted = f"\x8c{chr(len(name))}{name}"
    where = "torch.distributed.checkpoint.filesystem"
    code = b"\x80\x04" + f"\x8c{chr(len(where))}{where}{dotted}".encode("latin1") + b"\x93."
    (tmp_path / ".metadata").write_bytes(code)
    with pytest.raises(pickle.UnpicklingError, match=rf"it asks for {where}\.{module}\.{function}"):
        states.check_index(tmp_path)


def test_values_that_ask_for_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = States(tmp_path, 3, *trained())
    groups = own.optimizer.param_groups
    groups[0]["betas"] = Evil(tmp_path / "ran")
    own.save(1, {})
    other = States(tmp_path, 3, *trained())
    with pytest.raises(InputError, match=r"betas is neither tensor nor number nor text"):
        other.load()
    assert not (tmp_path / "ran").exists()


def test_every_file_is_read_with_tensors_and_plain_containers_alone():
    names = ("torch.load", "pickle.load", "pickle.loads", "np.load", "yaml.load")
    calls = [
        (path.name, ast.unparse(node.func), ast.unparse(node))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]
    assert len(calls) > 7
    limits = {"torch.load": "weights_only=True", "yaml.load": "_Loader"}  # of which _Loader is a SafeLoader
    for file, name, call in calls:
        inert = file == "foreign_files.py" and "pickle_module=_PICKLE" in call
        assert inert or limits[name] in call, f"{file}: {call}"
