"""A run's detector as safetensors with a card; nothing is uploaded unasked, and to a hub that is not there in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY_MODEL

from gkd_fast.cli.push_to_hub import main
from gkd_fast.config import PLAIN, replace, to_dict
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.errors import InputError, RunError
from gkd_fast.options import changed
from gkd_fast.runs.detector_file import load_detector, save_detector
from gkd_fast.runs.finished import load

pytest.importorskip("safetensors")
FIGURES = {"AP": 0.25, "AP50": 0.5, "AP75": 0.2, "images_per_second": 3.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a finished run that sharing reads, the student's weights drawn."""
    folder = tmp_path / "cells-1"
    spec = DetectorSpec(
        detector="faster_rcnn", backbone="mobilenet_v2", width=0.1, channels=16, head=32, anchor_size=16
    )
    data = {"data": "voc", "data_root": tmp_path / "secret" / "BCCD", "short_side": 64, "long_side": 64}
    config = changed(replace(PLAIN, "run", output=folder), {**TINY_MODEL, **data, "epochs": 7})
    (folder / "distilled").mkdir(parents=True)
    save_detector(folder / "distilled/model.pt", build_detector(spec, 2), spec, ("red", "white"), to_dict(config))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    networks = dict.fromkeys(("teacher", "student"), FIGURES) | {"distilled": FIGURES | {"AP": 0.3}}
    (folder / "summary.json").write_text(json.dumps({"classes": ["red", "white"], **networks}))
    return folder


class Hub:
    """Huggingface_hub's API, as far as it is used."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, **options: Any) -> None:
        assert options == {"library_name": "gkd_fast"}

    def create_repo(self, repository: str, **options: Any) -> Any:
        self.calls.append((repository, options))
        return type("Url", (str,), {"repo_id": repository})(f"https://hub/{repository}")

    def upload_folder(self, **options: Any) -> None:
        names = sorted(path.name for path in Path(options["folder_path"]).iterdir())
        self.calls.append((options["repo_id"], {"names": names}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_the_weights_are_the_runs_and_detect_the_same(run: Path, hub: type[Hub]) -> None:
    main([str(run)])
    original, shared = load_detector(run / "distilled/model.pt"), load_detector(run / "hub/model.safetensors")
    assert (shared.spec, shared.classes, shared.ap) == (original.spec, original.classes, 0.3)
    assert shared.model.keys() == original.model.keys()
    assert all(torch.equal(value, original.model[name]) for name, value in shared.model.items())
    image = torch.rand(3, 48, 64)
    (own,), (other,) = (load(run / name)([image]) for name in ("distilled/model.pt", "hub/model.safetensors"))
    assert all(torch.equal(own[key], other[key]) for key in own)
    assert hub.calls == []


def test_the_card_says_data_figures_method_and_licence_and_nothing_of_the_machine(run: Path, hub: type[Hub]) -> None:
    main([str(run), "--license", "cc-by-4.0"])
    card = (run / "hub/README.md").read_text()
    for text in (
        "license: cc-by-4.0\n",
        "| student distilled | 30.0 | 50.0 | 20.0 | 3.0 |",
        "+5.0 AP",
        "BCCD",
        "red, white",
        "method `gkd`",
        "`--epochs 7`",
        "tang2022distilling",
    ):
        assert text in card
    for file in (run / "hub").iterdir():
        assert b"secret" not in file.read_bytes(), file


def test_it_is_uploaded_where_that_is_asked(run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--repo", "me/cells", "--private"])
    assert hub.calls == [
        ("me/cells", {"private": True, "exist_ok": True}),
        ("me/cells", {"names": ["README.md", "config.json", "model.safetensors"]}),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/me/cells"
    assert 'hf_hub_download("me/cells", "model.safetensors")' in (run / "hub/README.md").read_text()


def test_a_hub_that_refuses_is_one_line(run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Hub, *_: Any, **__: Any) -> None:
        raise OSError("not logged in\nmore")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(RunError, match=r"^--repo: me/cells could not be uploaded: not logged in$"):
        main([str(run), "--repo", "me/cells"])


def test_a_run_that_is_not_finished_is_one_line(run: Path) -> None:
    (run / "summary.json").unlink()
    with pytest.raises(InputError, match="expected the folder of a finished run"):
        main([str(run)])


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model\.safetensors: expected a readable checkpoint"):
        load_detector(tmp_path / "model.safetensors")
