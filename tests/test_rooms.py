"""Rooms import from left to right only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gkd_fast"

# From left to right: what stands in a row may import the rows below it, and nothing in a row of its own.
ROOMS = (
    "entry",  # the public face, and the modules behind python -m
    "cli",
    "inspect",
    "study report",
    "export predict convert share",
    "runs",
    "training",
    "presets",
    "recipes",
    "config",
    "integrations",
    "distiller",
    "asking",
    "methods",
    "evaluation",
    "detectors data",
    "pyramids",
    "ops",
    "tracking",
    "kernels options interrupt files instances watching",
    "ranges parallel ticks overlap _checkout _lazy",
    "errors",
)
RANK = {name: number for number, row in enumerate(ROOMS) for name in row.split()}
ENTRIES = ("__init__", "__main__", "train", "evaluate", "push_to_hub")


def room(module: tuple[str, ...]) -> str:
    """The room of a module, given as the parts of its name behind the package's."""
    return "entry" if not module or module[-1] == "__main__" or module[0] in ENTRIES else module[0]


def modules() -> Iterator[tuple[tuple[str, ...], ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield parts[:-1] if parts[-1] == "__init__" else parts, ast.parse(file.read_text())


def imports(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their room"
            outermost = node.module == "gkd_fast"
            names = [f"gkd_fast.{alias.name}" for alias in node.names] if outermost else [str(node.module)]
        for name in names:
            package, *parts = name.split(".")
            if package == "gkd_fast" and parts != ["__version__"]:
                yield tuple(parts)


@pytest.mark.parametrize(
    ("module", "tree"), list(modules()), ids=lambda item: ".".join(item) if type(item) is tuple else ""
)
def test_imports_go_from_left_to_right(module: tuple[str, ...], tree: ast.Module) -> None:
    own = room(module)
    assert own in RANK, f"{own}: expected a place in ROOMS"
    for imported in imports(tree):
        other = room(imported)
        assert other in RANK, f"{other}: expected a place in ROOMS"
        assert own == other or RANK[own] < RANK[other], f"{'.'.join(module)} imports {'.'.join(imported)} to its left"
