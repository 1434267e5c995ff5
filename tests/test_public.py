"""The public face: what it has, and that nothing is loaded before it is used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import gkd_fast

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "torch._dynamo", "tyro", "pycocotools", "numpy", "PIL", "triton", "gkd_fast.ops")


def loaded(code: str) -> set[str]:
    """Those of the heavy modules that some code loads in a new process."""
    code += f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


def test_the_public_names_are_there() -> None:
    names = {"Distiller", "__version__", "integrations", "load", "methods", "ops", "study", "train"}
    assert set(dir(gkd_fast)) == set(gkd_fast.__all__) == names
    assert gkd_fast.ops.box_mean_pool.__module__ == "gkd_fast.ops.box_mean_pool"
    assert gkd_fast.Distiller.__module__ == "gkd_fast.distiller"
    assert gkd_fast.load.__module__ == "gkd_fast.runs.finished"
    assert gkd_fast.methods.__name__ == "gkd_fast.methods"
    with pytest.raises(AttributeError, match=r"^module 'gkd_fast' has no attribute 'distil'$"):
        gkd_fast.distil  # noqa: B018


@pytest.mark.parametrize(
    "package",
    [file.parent for file in (ROOT / "gkd_fast").rglob("__init__.py") if "lazily(" in file.read_text()],
    ids=str,
)
def test_names_that_are_loaded_when_used_are_those_that_type_checkers_see(package: Path) -> None:
    name = ".".join(package.relative_to(ROOT).parts)
    module = importlib.import_module(name)
    (checked,) = (node for node in ast.parse((package / "__init__.py").read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: line.module for line in checked.body for alias in line.names}
    assert sorted(seen) == sorted(module.__all__)
    assert set(seen) <= set(dir(module))
    for own, origin in seen.items():
        assert getattr(module, own) is getattr(importlib.import_module(origin), own)
    with pytest.raises(AttributeError, match=rf"^module '{name}' has no attribute 'nothing'$"):
        module.nothing  # noqa: B018


def test_the_package_itself_loads_nothing() -> None:
    assert loaded("import gkd_fast\ndir(gkd_fast)\ngkd_fast.__version__") == set()


def test_operators_load_torch_without_its_compiler() -> None:
    assert not loaded("import gkd_fast\ngkd_fast.ops") & {"torchvision", "torch._dynamo", "tyro", "pycocotools", "PIL"}


def test_the_distiller_loads_neither_torchvision_nor_torchs_compiler() -> None:
    assert not loaded("import gkd_fast\ngkd_fast.Distiller") & {"torchvision", "torch._dynamo", "tyro", "PIL"}


def test_a_constant_result_is_marked_as_torch_marks_it() -> None:
    def function() -> None: ...

    marked = torch.compiler.assume_constant_result(function)
    assert vars(marked) == {"_dynamo_marked_constant": True}


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "gkd_fast.__version__"
    assert gkd_fast.__version__
