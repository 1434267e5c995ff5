"""Prototype candidates from the training steps: a ring for each class, the newest of each instance, kept, restored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run
from tiny_steps import CPU, make_batches, make_config, make_data, make_step

from gkd_fast.cli import train
from gkd_fast.instances import Instances
from gkd_fast.methods.gkd import Candidates, ClassRings, PrototypeBank, generate_bank
from gkd_fast.methods.gkd.rings import candidates_from
from gkd_fast.training.distilling import embed_ground_truth
from gkd_fast.training.step import TrainStep

STRIDES = (4, 8)


def add(rings: ClassRings, seed: int, labels: list[int], image: list[int], ids: list[int] | None) -> dict:
    """A step of two images; returns what it embeds."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, len(labels), channels, generator=generator) for channels in (3, 5))
    boxes = torch.rand(len(labels), 4, generator=generator)
    instances = Instances(boxes, torch.tensor(image, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64))
    known = None if ids is None else torch.tensor(ids)
    rings.add(student, teacher, instances, STRIDES, images=2, image_ids=known, flipped=torch.tensor([False, True]))
    return {"student": student, "teacher": teacher, "boxes": boxes}


def taken(rings: ClassRings) -> Candidates:
    return candidates_from([rings.rows()], rings.strides)


def test_candidates_are_sorted_by_image_and_keep_their_columns() -> None:
    rings = ClassRings(3, 4)
    assert not rings.filled
    seen = add(rings, 0, [0, 2, 1], [1, 0, 1], [9, 3])
    assert rings.filled
    found = taken(rings)
    assert found.image_ids.tolist() == [3, 3, 9]
    assert found.labels.tolist() == [0, 1, 2]
    assert found.flipped.tolist() == [True, True, False]
    order = [0, 2, 1]
    assert torch.equal(found.student, seen["student"][:, order])
    assert torch.equal(found.teacher, seen["teacher"][:, order])
    assert torch.equal(found.boxes, seen["boxes"][order])
    assert found.strides == STRIDES


def test_an_instance_seen_again_is_there_once_as_last_seen() -> None:
    rings = ClassRings(2, 10)
    add(rings, 0, [0, 1], [0, 1], [7, 3])
    newest = add(rings, 1, [1, 0], [0, 1], [3, 7])
    found = taken(rings)
    assert found.image_ids.tolist() == [3, 7]
    assert torch.equal(found.student, newest["student"])


def test_padding_is_not_kept() -> None:
    padded, plain = ClassRings(2, 2), ClassRings(2, 2)
    seen = add(padded, 0, [0, -1, 1, 0, -1, 0], [0, 0, 0, 1, 1, 1], [7, 3])
    real = torch.tensor([0, 2, 3, 5])
    instances = Instances(seen["boxes"][real], torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 0]))
    embeddings = seen["student"][:, real], seen["teacher"][:, real]
    plain.add(
        *embeddings, instances, STRIDES, images=2, image_ids=torch.tensor([7, 3]), flipped=torch.tensor([False, True])
    )
    one, other = padded.rows(), plain.rows()
    assert one["labels"].tolist() == [0, 0, 1]
    for name in set(one) - {"places"}:  # padding lies behind the boxes of an image, here between them
        assert torch.equal(one[name], other[name]), name


def test_images_without_ids_are_all_kept() -> None:
    rings = ClassRings(2, 10)
    for seed in range(3):
        add(rings, seed, [0, 1], [0, 1], None)
    assert taken(rings).labels.tolist().count(0) == 3


def test_frequent_classes_do_not_push_out_rare_ones() -> None:
    rings = ClassRings(2, 3)
    rare = add(rings, 0, [1], [0], None)
    for seed in range(1, 6):
        last = add(rings, seed, [0, 0], [0, 1], None)
    found = taken(rings)
    assert found.labels.tolist().count(0) == 3
    assert found.labels.tolist().count(1) == 1
    assert torch.equal(found.student[:, found.labels == 1], rare["student"])
    boxes = found.boxes[found.labels == 0]
    assert all((boxes == box).all(1).any() for box in last["boxes"])


def test_of_more_instances_than_a_ring_holds_the_last_ones_stay() -> None:
    rings = ClassRings(1, 3)
    seen = add(rings, 0, [0] * 5, [0] * 5, None)
    boxes = taken(rings).boxes
    assert len(boxes) == 3
    assert all((boxes == box).all(1).any() for box in seen["boxes"][2:])


def test_rings_come_back_bit_by_bit() -> None:
    rings, restored = ClassRings(2, 3), ClassRings(2, 3)
    for seed in range(4):
        add(rings, seed, [0, 0, 1], [0, 1, 1], [2 * seed, 2 * seed + 1])
    restored.load_state_dict(rings.state_dict(), CPU)
    for later in (rings, restored):
        add(later, 9, [1, 0], [0, 1], [50, 51])
    one, other = (vars(taken(item)) for item in (rings, restored))
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_smaller_rings_take_the_newest_of_a_state() -> None:
    rings, small = ClassRings(1, 6), ClassRings(1, 2)
    for seed in range(4):
        last = add(rings, seed, [0], [0], None)
    small.load_state_dict(rings.state_dict(), CPU)
    boxes = taken(small).boxes
    assert len(boxes) == 2
    assert (boxes == last["boxes"]).all(1).any()


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_steps_fill_the_rings_and_a_refresh_takes_them(detector: str) -> None:
    step, batches = make_step(make_config(detector, distill={"prototypes_from": "harvest"}))
    for batch in batches:
        step(batch, 1.0)
    bank = step.distiller.refresh()
    seen = {t["image_id"]: t for _, targets in batches for t in targets}
    for image, box, flipped in zip(
        bank.image_ids.flatten().tolist(), bank.boxes.flatten(0, 1), bank.flipped.flatten().tolist(), strict=True
    ):
        assert (seen[image]["boxes"] == box).all(1).any()
        assert seen[image]["flipped"] is flipped


def test_a_pass_and_a_harvest_of_the_same_features_pick_the_same() -> None:
    config = make_config(
        optim={"lr": 0.0}, distill={"prototypes_from": "harvest", "student_statistics": "batch", "min_box": 10.0}
    )
    step, _ = make_step(config)
    data = make_data().without_flip()
    batches = make_batches(data)
    student, teacher = step.adapter, step.distiller.detectors[1]
    passed = embed_ground_truth(student, teacher, batches, config.distill, CPU)
    student.model.train()
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    for batch in batches:
        student.model.load_state_dict(before)
        step(batch, 1.0)
    harvested = candidates_from([step.distiller.rings.rows()], step.distiller.rings.strides)
    order = passed.image_ids.argsort(stable=True)
    assert torch.equal(harvested.boxes, passed.boxes[order])
    torch.testing.assert_close(harvested.student, passed.student[:, order], rtol=1e-4, atol=1e-4)
    sorted_pass = Candidates(
        *(getattr(passed, name)[:, order] for name in ("student", "teacher")),
        *(getattr(passed, name)[order] for name in ("labels", "image_ids", "boxes", "flipped")),
        strides=passed.strides,
    )
    picks = [generate_bank(found, data.classes, config.distill) for found in (sorted_pass, harvested)]
    same = (picks[0].boxes == picks[1].boxes).all(-1) & (picks[0].image_ids == picks[1].image_ids)
    assert same.float().mean() > 0.95  # rounding may turn a tie


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
