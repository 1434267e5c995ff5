"""The pages of docs/ and the README: what can run on the embedded data runs, in order; the rest says why not."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from gkd_fast.cli.main import COMMANDS
from gkd_fast.cli.parsing import _help_asked
from gkd_fast.cli.train import read
from gkd_fast.detectors import DetectorSpec, build_detector

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "docs/results/index.md", ROOT / "README.md"])
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """kind: sh, python, text, ... why: the reason not to run it; empty: it is run."""

    page: str
    kind: str
    text: str
    why: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of gkd_fast in it, from the command's name on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        named = [re.sub(r"^python -m gkd_fast\.", "gkd-fast ", shlex.join(own)) for own in words if own]
        found = [shlex.split(line)[1:] for line in named if line.startswith("gkd-fast ")]
        return [words for words in found if words != ["ops"]]


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(page.name, own["kind"], own["text"], own["why"] or "") for own in found]


def python(block: Block, names: dict[str, Any]) -> None:
    exec(compile(block.text, block.page, "exec"), names)


def shell(block: Block) -> None:
    assert len(block.commands) == len([line for line in block.text.replace("\\\n", " ").splitlines() if line])
    for name, *arguments in block.commands:
        importlib.import_module(f"gkd_fast.cli.{name.replace('-', '_')}").main(arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages are run, beginning with the first one, whose run the others go on from."""
    return tmp_path_factory.mktemp("pages")


# The start first: others use its run.
@pytest.mark.parametrize("page", sorted(PAGES, key=lambda page: page.name != "index.md"), ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(".safetensors" in block.text or "push-to-hub" in block.text for block in blocks(page)):
        pytest.importorskip("safetensors")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if not block.why and block.kind in ("sh", "python"):
            python(block, names) if block.kind == "python" else shell(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_are_not_run_have_options_that_exist(page: Path) -> None:
    for block in blocks(page):
        for name, *arguments in block.commands if block.kind == "sh" else ():
            assert name in COMMANDS, f"{page.name}: {name}"
            if name == "train" and "--resume" not in arguments and "..." not in arguments:
                read(arguments)
            assert _help_asked(arguments)[0] is None


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_something_of_every_kind_is_run() -> None:
    run = [block.kind for page in PAGES for block in blocks(page) if not block.why]
    assert run.count("python") >= 8
    assert run.count("sh") >= 5


def recipe() -> str:
    (block,) = (own for own in blocks(ROOT / "docs/after.md") if "FastRCNNPredictor" in own.text)
    return block.text


def test_the_recipe_in_plain_torchvision_loads_a_trained_student_strictly(tmp_path: Path) -> None:
    spec = DetectorSpec(
        detector="faster_rcnn", backbone="mobilenet_v2", width=0.35, channels=64, head=512, anchor_size=16
    )
    trained = build_detector(spec, 3)
    path = tmp_path / "model.pt"
    torch.save({"spec": spec.to_dict(), "classes": ["a", "b", "c"], "model": trained.state_dict()}, path)
    names: dict[str, object] = {}
    exec(recipe().replace("runs/bccd-0/distilled/model.pt", str(path)), names)
    assert type(names["detector"]) is FasterRCNN
    for name, value in trained.state_dict().items():
        assert torch.equal(names["detector"].state_dict()[name], value)


def test_the_pictures_are_what_the_method_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/pictures"))
    import method

    student, teacher = method.spaces()
    _, picked = method.picks(student, teacher)
    omega = method.weights(student, teacher, picked)
    assert sorted(omega.argsort()[: method.NOISY].tolist()) == list(range(method.NOISY))
    drawn = (ROOT / "docs/pictures/prototypes.svg").read_text(encoding="utf-8")
    shapes = re.compile(r"<[a-z]+")
    assert shapes.findall(drawn) == shapes.findall(method.prototypes_picture(student, teacher))
    written = re.findall(r"ω = (\d\.\d\d)", (ROOT / "docs/pictures/omega.svg").read_text(encoding="utf-8"))
    expected = [float(omega[row]) for row in range(len(omega)) if row in range(method.NOISY)] * 2
    assert [float(text) for text in written] == pytest.approx(expected, abs=0.0051)
    del sys.modules["method"]
