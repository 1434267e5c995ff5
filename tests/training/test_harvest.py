"""Prototype candidates from the training steps: the same rows as a pass finds, kept, restored, and picked from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run
from tiny_steps import CPU, make_batches, make_config, make_data, make_step

from gkd_fast.cli import train
from gkd_fast.methods.gkd import PrototypeBank, collect_candidates, generate_bank
from gkd_fast.methods.gkd.harvest import CandidatePool
from gkd_fast.training.step import TrainStep

STRIDES = (4, 8)


def make_pool(images: dict[int, int]) -> CandidatePool:
    return CandidatePool(images, 2, 3, 5, "clamp")


def maps(seed: int, channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 16 // s, 16 // s, generator=generator) for s in (1, 2)]


def target(image: int, count: int, *, flipped: bool = False) -> dict:
    corner = torch.arange(count, dtype=torch.float32)[:, None] * 4
    boxes = torch.cat([corner, corner, corner + 20, corner + 30], 1)
    return {"boxes": boxes, "labels": torch.arange(count) + 1, "image_id": image, "flipped": flipped}


def test_rows_stand_in_the_order_of_the_candidate_images() -> None:
    pool = make_pool({7: 2, 3: 1, 9: 2})
    pool.add(maps(0, 3), maps(1, 5), [target(9, 2), target(5, 3)], STRIDES)
    pool.add(maps(2, 3), maps(3, 5), [target(3, 1, flipped=True), target(7, 2)], STRIDES)
    found = pool.candidates()
    assert found.image_ids.tolist() == [7, 7, 3, 9, 9]
    assert found.labels.tolist() == [0, 1, 0, 0, 1]
    assert found.flipped.tolist() == [False, False, True, False, False]
    assert found.student.shape == (2, 5, 3)
    assert found.teacher.shape == (2, 5, 5)
    assert found.strides == STRIDES
    level = maps(2, 3)[0][0]  # image 3: cells of rows 0 to 7 and columns 0 to 5
    torch.testing.assert_close(found.student[0, 2], level[:, 0:8, 0:6].mean((1, 2)))


def test_an_image_seen_again_replaces_its_rows() -> None:
    pool = make_pool({7: 1, 3: 1})
    for seed in (0, 2):
        pool.add(maps(seed, 3), maps(seed + 1, 5), [target(7, 1), target(3, 1)], STRIDES)
    fresh = make_pool({7: 1, 3: 1})
    fresh.add(maps(2, 3), maps(3, 5), [target(7, 1), target(3, 1)], STRIDES)
    assert torch.equal(pool.candidates().student, fresh.candidates().student)


def test_an_unseen_pool_is_not_filled() -> None:
    pool = make_pool({7: 1})
    pool.add(maps(0, 3), maps(1, 5), [target(1, 1), target(2, 0)], STRIDES)
    assert not pool.filled
    pool.add(maps(0, 3), maps(1, 5), [target(1, 1), target(7, 1)], STRIDES)
    assert pool.filled


def test_a_pool_comes_back_bit_by_bit() -> None:
    pool, restored = make_pool({7: 2, 3: 1}), make_pool({7: 2, 3: 1})
    pool.add(maps(0, 3), maps(1, 5), [target(7, 2, flipped=True), target(1, 1)], STRIDES)
    restored.load_state_dict(pool.state_dict())
    for later in (pool, restored):
        later.add(maps(2, 3), maps(3, 5), [target(3, 1), target(1, 1)], STRIDES)
    one, other = (vars(item.candidates()) for item in (pool, restored))
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_a_pass_and_a_harvest_of_the_same_features_pick_the_same() -> None:
    config = make_config(distill={"student_statistics": "batch", "min_box": 10.0})
    step, _ = make_step(config)
    data = make_data().without_flip()
    batches = make_batches(data)
    step.distiller.harvest(data.boxes_per_image([t["image_id"] for _, targets in batches for t in targets]))
    student, teacher = step.adapter, step.distiller.teacher
    passed = collect_candidates(student, teacher, batches, config.distill, CPU)
    student.model.train()
    with torch.no_grad():
        for batch in batches:
            images, targets = step.prepare(batch)
            levels = [list(network.pyramid(images).values()) for network in (student, teacher)]
            step.distiller.pool.add(*levels, targets, passed.strides)
    harvested = step.distiller.pool.candidates()
    assert torch.equal(harvested.boxes, passed.boxes)
    torch.testing.assert_close(harvested.student, passed.student, rtol=1e-4, atol=1e-4)
    picks = [generate_bank(found, data.classes, config.distill) for found in (passed, harvested)]
    same = (picks[0].boxes == picks[1].boxes).all(-1) & (picks[0].image_ids == picks[1].image_ids)
    assert same.float().mean() > 0.95  # rounding may turn a tie


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_steps_fill_the_pool_and_a_refresh_takes_it(detector: str) -> None:
    step, batches = make_step(make_config(detector))
    step.distiller.harvest({t["image_id"]: len(t["labels"]) for _, targets in batches for t in targets})
    for batch in batches:
        step(batch, 1.0)
    bank = step.distiller.refresh(step.adapter, [])  # no batch to pass over
    seen = {t["image_id"]: t for _, targets in batches for t in targets}
    for image, box, flipped in zip(
        bank.image_ids.flatten().tolist(), bank.boxes.flatten(0, 1), bank.flipped.flatten().tolist(), strict=True
    ):
        assert (seen[image]["boxes"] == box).all(1).any()
        assert seen[image]["flipped"] is flipped


OPTIONS = tiny_run("--log-steps 1 --checkpoint-steps 3 --prototypes-from harvest", train=8, val=2, side=96, epochs=3)


def test_a_run_resumed_between_harvests_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main([*OPTIONS, "--output", str(tmp_path / "whole")])
    call = TrainStep.__call__

    def interrupted(self: TrainStep, *arguments):
        if self.distiller and self.steps == 3 and broken:
            raise KeyboardInterrupt
        return call(self, *arguments)

    broken = True
    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    teacher = ["--teacher-checkpoint", str(tmp_path / "whole" / "teacher" / "model.pt")]
    with pytest.raises(KeyboardInterrupt):
        train.main([*OPTIONS, *teacher, "--output", str(tmp_path / "part")])
    broken = False
    train.main(["--resume", "--output", str(tmp_path / "part")])
    whole, part = (
        torch.load(tmp_path / name / "distilled" / "model.pt", weights_only=True)["model"] for name in ("whole", "part")
    )
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    lines = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line.get("event") == "prototypes"] == [0, 1, 2]
    bank = PrototypeBank.load(tmp_path / "part" / "distilled" / "prototypes.pt")
    assert bank.flipped.any()
    assert not bank.flipped.all()
