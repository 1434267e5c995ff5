from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gkd_fast.errors import InputError
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import Candidates, PrototypeBank, candidate_indices, generate_bank
from gkd_fast.methods.gkd.prototypes import dense_instances, density
from gkd_fast.methods.gkd.selection import select


def make_candidates(counts: list[int], *, levels: int = 2, side: float = 50.0) -> Candidates:
    generator = torch.Generator().manual_seed(3)
    total = sum(counts)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    corner = torch.rand(total, 2, generator=generator) * 100
    return Candidates(
        student=torch.randn(levels, total, 8, generator=generator).abs(),
        teacher=torch.randn(levels, total, 12, generator=generator).abs(),
        labels=labels,
        image_ids=torch.arange(total) + 1000,
        flipped=torch.zeros(total, dtype=torch.bool),
        boxes=torch.cat([corner, corner + side], dim=1),
        strides=tuple(4 * 2**level for level in range(levels)),
    )


def test_density_is_the_sum_over_all_pairs() -> None:
    x = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = [sum(math.exp(-(((1 - float(a @ b)) / 0.1) ** 2)) for b in x) for a in x]
    torch.testing.assert_close(density(x, 0.1), torch.tensor(expected))


def test_dense_instances_are_above_the_quantile_in_both_spaces() -> None:
    student = F.normalize(torch.rand(50, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    teacher = F.normalize(torch.rand(50, 6, generator=torch.Generator().manual_seed(2)), dim=1)
    config = Settings(prototypes=3)
    dense = dense_instances(student, teacher, config)
    for space in (student, teacher):
        rho = density(space, config.bandwidth)
        assert (rho[dense] > rho.sort().values[20]).all()
    both = [
        density(space, config.bandwidth) > density(space, config.bandwidth).sort().values[20]
        for space in (student, teacher)
    ]
    assert int(dense.sum()) == int((both[0] & both[1]).sum()) > 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_filters_relax_for_few_candidates(count: int) -> None:
    x = F.normalize(torch.rand(count, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    assert dense_instances(x, x, Settings()).all()


def test_published_filters_fail_on_one_candidate() -> None:
    x = F.normalize(torch.rand(1, 4), dim=1)
    with pytest.raises(ValueError, match="density filter: expected at least one of 1"):
        dense_instances(x, x, Settings(relax_filters=False))


def test_bank_keeps_unnormalised_embeddings_and_their_provenance() -> None:
    candidates = make_candidates([40, 30, 25])
    bank = generate_bank(candidates, ("a", "b", "c"), Settings(prototypes=4))
    assert bank.class_offsets.tolist() == [0, 4, 8, 12]
    assert bank.strides == (4, 8)
    for level in range(2):
        for column in range(12):
            row = int(bank.image_ids[level, column]) - 1000
            assert int(candidates.labels[row]) == column // 4
            torch.testing.assert_close(bank.student[level, column], candidates.student[level, row])
            torch.testing.assert_close(bank.teacher[level, column], candidates.teacher[level, row])
            torch.testing.assert_close(bank.boxes[level, column], candidates.boxes[row])


def test_a_pick_is_never_taken_twice_and_rare_classes_get_what_they_have() -> None:
    bank = generate_bank(make_candidates([40, 0, 3]), ("a", "none", "rare"), Settings())
    assert bank.class_offsets.tolist() == [0, 10, 10, 13]
    for level in range(2):
        assert len(set(bank.image_ids[level].tolist())) == 13


@pytest.mark.parametrize("selection", ["random", "kmeans"])
def test_other_selections_pick_different_dense_candidates_of_the_class(selection: str) -> None:
    candidates, settings = make_candidates([40, 4, 0]), Settings(prototype_selection=selection)
    bank = generate_bank(candidates, ("a", "b", "c"), settings)
    assert bank.class_offsets.tolist() == [0, 10, 14, 14]
    for level in range(2):
        picked = bank.image_ids[level, :10] - 1000
        spaces = [F.normalize(space[level, :40], dim=1) for space in (candidates.student, candidates.teacher)]
        assert dense_instances(*spaces, settings)[picked].all()
        assert len(set(picked.tolist())) == 10
        assert sorted(bank.image_ids[level, 10:].tolist()) == [1040, 1041, 1042, 1043]


def test_kmeans_finds_one_prototype_in_every_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.eye(6).repeat_interleave(7, 0)
    points = F.normalize(corners + 0.05 * torch.rand(42, 6, generator=generator), dim=1)
    dense = torch.ones(42, dtype=torch.bool)
    found = select(points, points, dense, 6, "kmeans")
    centres = [F.normalize(points[found[k] // 7 * 7 :][:7].sum(0), dim=0) for k in range(6)]
    for centre, pick in zip(centres, found.tolist(), strict=True):
        first = pick // 7 * 7
        assert pick == first + int((points[first : first + 7] @ centre).argmax())
    assert sorted((found // 7).tolist()) == list(range(6))


def test_small_boxes_only_serve_where_there_are_no_others() -> None:
    candidates = make_candidates([30])
    small = torch.arange(30) % 2 == 0
    candidates.boxes[small, 2:] = candidates.boxes[small, :2] + 20
    bank = generate_bank(candidates, ("a",), Settings())
    assert ((bank.boxes[..., 2] - bank.boxes[..., 0]) > 30).all()
    candidates.boxes[:, 2:] = candidates.boxes[:, :2] + 20
    assert generate_bank(candidates, ("a",), Settings()).student.shape[1] == 10


def test_no_candidates_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="instances of at least one class"):
        generate_bank(make_candidates([0, 0]), ("a", "b"), Settings())


def test_bank_survives_a_file(tmp_path) -> None:
    bank = generate_bank(make_candidates([20, 20]), ("a", "b"), Settings(prototypes=4))
    bank.save(tmp_path / "bank.pt")
    loaded = PrototypeBank.load(tmp_path / "bank.pt")
    assert loaded.classes == bank.classes
    assert loaded.strides == bank.strides
    for name in ("student", "teacher", "class_offsets", "image_ids", "boxes"):
        assert torch.equal(getattr(loaded, name), getattr(bank, name))
    (tmp_path / "bad.pt").write_text("no bank")
    with pytest.raises(InputError, match=r"bad\.pt: expected a prototype bank"):
        PrototypeBank.load(tmp_path / "bad.pt")


def test_candidate_images_are_limited_per_class() -> None:
    labels = [{0}] * 50 + [{0, 1}] * 5 + [set()] * 5
    chosen = candidate_indices(labels, 10, seed=0)
    assert sum(1 in labels[i] for i in chosen) == 5
    assert 10 <= len(chosen) <= 15
    assert chosen != candidate_indices(labels, 10, seed=1)
    assert chosen == candidate_indices(labels, 10, seed=0)
