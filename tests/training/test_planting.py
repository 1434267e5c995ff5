"""Damage planted in the teacher's view: which instances, what is left of them, and how well weights tell them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run
from torch import Tensor

from gkd_fast.cli import study
from gkd_fast.instances import Instances
from gkd_fast.runs.robustness import area_under_curve
from gkd_fast.training.planting import Planting


def make_batch(count: int = 60) -> tuple[Tensor, Instances]:
    """Three images with boxes of 12 x 10 pixels apart from each other, the class alternating from box to box."""
    generator = torch.Generator().manual_seed(0)
    at = torch.arange(count // 3)
    corner = torch.stack([at % 5 * 16, at // 5 * 16], 1).float().repeat(3, 1)
    boxes = torch.cat([corner, corner + torch.tensor([12.0, 10.0])], 1)
    truth = Instances(boxes, torch.arange(3).repeat_interleave(count // 3), torch.arange(count) % 2)
    return torch.rand(3, 3, 64, 80, generator=generator), truth


def content(images: Tensor, truth: Instances, number: int) -> Tensor:
    x1, y1, x2, y2 = truth.boxes[number].long().tolist()
    return images[truth.image_index[number], :, y1:y2, x1:x2]


@pytest.mark.parametrize("kind", ["blur", "occlusion", "swap"])
def test_the_same_share_of_the_instances_is_damaged_each_time_and_nothing_else(kind: str) -> None:
    images, truth = make_batch()
    planting, before = Planting(kind, 0.3, seed=1), images.clone()
    shown, planted = planting(images, truth, [7, 8, 9])
    assert torch.equal(images, before)
    again, same = planting(
        images[[2, 0, 1]], Instances(truth.boxes, (truth.image_index + 1) % 3, truth.labels), [9, 7, 8]
    )
    assert torch.equal(planted, same)
    if kind != "swap":
        assert torch.equal(again[[1, 2, 0]], shown)
    assert 8 <= int(planted.sum()) <= 28
    for number, damaged in enumerate(planted.tolist()):
        assert torch.equal(content(shown, truth, number), content(images, truth, number)) != damaged
    outside = torch.ones(3, 64, 80, dtype=torch.bool)
    for number in range(len(truth.labels)):
        content(outside[:, None], truth, number).fill_(False)
    assert torch.equal(shown.movedim(1, 0)[:, outside], images.movedim(1, 0)[:, outside])


def test_what_is_left_of_a_damaged_instance() -> None:
    images, truth = make_batch()
    for kind in ("blur", "occlusion", "swap"):
        shown, planted = Planting(kind, 0.3, seed=1)(images, truth, [7, 8, 9])
        for number in torch.where(planted)[0].tolist():
            own, seen = content(images, truth, number), content(shown, truth, number)
            if kind == "occlusion":
                covered = (seen == 0).all(0)
                assert float(covered.float().mean()) == pytest.approx(0.5, abs=0.1)
                assert torch.equal(seen[:, ~covered], own[:, ~covered])
            elif kind == "blur":
                assert float(seen.std()) < 0.5 * float(own.std())
            else:
                others = [content(images, truth, n) for n in range(60) if truth.labels[n] != truth.labels[number]]
                assert any(torch.equal(seen, other) for other in others)


def test_nothing_is_swapped_without_another_class() -> None:
    images, truth = make_batch()
    shown, planted = Planting("swap", 1.0, seed=1)(
        images, Instances(*list(vars(truth).values())[:2], truth.labels * 0), [7, 8, 9]
    )
    assert torch.equal(shown, images)
    assert not planted.any()


def test_area_under_curve_is_the_share_of_pairs_in_order() -> None:
    scores, positive = torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False])
    assert area_under_curve(scores, positive) == pytest.approx(3.5 / 4)
    assert area_under_curve(-scores, positive) == pytest.approx(0.5 / 4)


def test_a_study_reports_how_well_damage_is_found(tmp_path: Path) -> None:
    options = tiny_run(
        "--teacher-noise blur --teacher-noise-share 0.5 --prototypes-from harvest", train=8, val=2, epochs=1
    )
    study.main([*options, "--methods", "gkd", "--seeds", "0", "--output", str(tmp_path / "study")])
    found = json.loads((tmp_path / "study" / "study.json").read_text())["results"]["gkd"]["0"]["planted"]
    assert 0 < found["planted"] < found["instances"]
    assert 0 <= found["auc"] <= 1
    assert f"| gkd | 1 | {found['auc']:.3f} |" in (tmp_path / "study" / "study.md").read_text()
