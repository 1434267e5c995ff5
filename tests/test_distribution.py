"""The sdist holds all that the wheel is built from, and the wheel all that a run needs, outside of a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from tiny_runs import tiny_run

import gkd_fast

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("gkd_fast", "csrc", "kernels")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")


def built(kind: str, source: Path, output: Path) -> Path:
    """A distribution of a source folder, made by the build backend as pip would call it."""
    hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    result = subprocess.run([sys.executable, "-c", hook], cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = output.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    place = tmp_path_factory.mktemp("sdist")
    leftovers = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in NEEDED:
        shutil.copytree(ROOT / name, place / "source" / name, ignore=leftovers)
    for name in FILES:
        shutil.copy(ROOT / name, place / "source" / name)
    (place / "dist").mkdir()
    with tarfile.open(built("sdist", place / "source", place / "dist")) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel, built from the sdist, is installed."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "dist").mkdir()
    with zipfile.ZipFile(built("wheel", sdist, place / "dist")) as wheel:
        wheel.extractall(place / "target")  # which is what pip does, but for scripts and compiled Python
    return place / "target"


def outside(target: Path, folder: Path, *program: str) -> str:
    """What a program prints in a folder of its own, with the wheel and the libraries, and no editable install."""
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    start = f"import sys; sys.path += {[str(target), *libraries]!r}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Without `site` no .pth file is read, and so no editable install found.
    command = [sys.executable, "-S", "-c", "\n".join((start, *program))]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_sdist_has_every_source(sdist: Path) -> None:
    for name in NEEDED:
        for file in (ROOT / name).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".typed"):
                assert (sdist / file.relative_to(ROOT)).is_file(), file
    for name in FILES:
        assert (sdist / name).is_file()


def test_the_wheel_has_every_source(installed: Path) -> None:
    places = {"gkd_fast": "gkd_fast", "csrc": "gkd_fast/csrc", "kernels": "gkd_fast/kernels"}
    for name, place in places.items():
        for file in (ROOT / name).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".typed"):
                assert (installed / place / file.relative_to(ROOT / name)).is_file(), file
    assert not (installed / "tests").exists()


def test_the_wheel_says_what_it_is(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    assert f"\nVersion: {gkd_fast.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    (scripts,) = installed.glob("*.dist-info/entry_points.txt")
    assert "gkd-fast = gkd_fast.cli.main:main" in scripts.read_text()


def test_the_main_job_runs_outside_of_a_checkout(installed: Path, tmp_path: Path) -> None:
    options = tiny_run("--output run", train=4, val=2, epochs=1)
    program = f"""
import runpy
sys.argv[1:] = {options!r}
try:
    runpy.run_module("gkd_fast.train", run_name="__main__", alter_sys=True)
finally:
    print(sys.modules["gkd_fast"].__file__)
"""
    printed = outside(installed, tmp_path, program)
    assert "student distilled" in printed
    assert "next: gkd-fast report run; gkd-fast predict --checkpoint run/distilled/model.pt IMAGES; " in printed
    assert Path(printed.splitlines()[-1]).is_relative_to(installed)
    assert (tmp_path / "run/distilled/model.pt").is_file()


def test_an_operator_runs_compiled_outside_of_a_checkout(installed: Path, tmp_path: Path) -> None:
    program = """
import torch
from gkd_fast import ops
import gkd_fast.kernels
maps, boxes = [torch.rand(1, 4, 8, 8)], torch.tensor([[0.0, 0.0, 31.0, 31.0]])
found = []
for name in ("cpu", "reference"):
    with ops.use_backend(name):
        found.append(ops.box_mean_pool(maps, boxes, torch.zeros(1, dtype=torch.int64), [4]))
torch.testing.assert_close(*found)
print(ops.__file__, gkd_fast.kernels.__file__)
"""
    places = outside(installed, tmp_path, program).split()
    assert all(Path(place).is_relative_to(installed) for place in places)


def test_the_changelog_goes_on_from_this_version() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    headings = [line.split()[1].strip("[]") for line in lines if line.startswith("## ")]
    assert headings[:2] == ["Unreleased", gkd_fast.__version__]


def test_every_way_of_checking_runs_the_same_checks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = {hook["entry"] for hook in hooks}
    assert checks == {"ruff check", "ruff format --check", "mypy"}
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["checks"]["steps"] if "run" in step]
    script = (ROOT / ".ci/run").read_text().splitlines()
    for lines in (steps, script):
        assert checks <= {line.removesuffix(" .") for line in lines}


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_github_can_read_its_files(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        assert {"name", "jobs", "permissions"} <= set(content)
    elif path.stem != "config":
        assert {"name", "description", "body"} <= set(content)


def test_the_citation_is_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    names = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert names == ["Tang", "Zhang", "Cheng", "Lu", "Xu", "Niu", "He"]
    assert citation["license"] == "Apache-2.0"
