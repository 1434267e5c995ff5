"""The README's recipe for the trained student in plain torchvision works as printed."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from torchvision.models.detection import FasterRCNN

from gkd_fast.detectors import DetectorSpec, build_detector

README = Path(__file__).parents[1] / "README.md"


def recipe() -> str:
    blocks = README.read_text().split("\n\n")
    start = next(i for i, block in enumerate(blocks) if "from torchvision.models.detection import FasterRCNN" in block)
    return textwrap.dedent("\n".join(blocks[start : start + 2]))


def test_the_recipe_loads_a_trained_student_strictly(tmp_path: Path) -> None:
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
