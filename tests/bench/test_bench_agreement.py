import pytest
import torch

from bench.measuring.agreement import Result, disagreement, pick_disagreement
from gkd_fast import ops

VALUES = torch.linspace(-2.0, 3.0, 1000)


def changed(index: int, by: float) -> torch.Tensor:
    values = VALUES.clone()
    values[index] += by
    return values


def test_rounding_agrees():
    truth = Result([VALUES], [VALUES])
    result = Result([VALUES * (1 + 1e-6)], [VALUES + 1e-6])
    assert disagreement(result, truth, torch.float32) is None
    assert disagreement(result, truth, torch.float64) is not None


@pytest.mark.parametrize(
    "result",
    [
        Result([changed(3, 0.1)], [VALUES]),
        Result([VALUES], [changed(999, -0.1)]),
        Result([VALUES], [None]),
        Result([VALUES], []),
        Result([VALUES[None]], [VALUES]),
        Result([changed(0, float("nan"))], [VALUES]),
    ],
    ids=["value", "gradient", "no gradient", "no gradients", "shape", "NaN"],
)
def test_a_difference_is_named(result):
    assert disagreement(result, Result([VALUES], [VALUES]), torch.float32)


def test_nan_at_the_same_places_agrees():
    values = changed(5, float("nan"))
    assert disagreement(Result([values], []), Result([values.clone()], []), torch.float32) is None


def test_gradient_of_a_truth_without_any_is_held_absolutely():
    truth = Result([torch.zeros(3)], [])
    assert disagreement(Result([torch.zeros(3)], []), truth, torch.float32) is None
    assert disagreement(Result([torch.full((3,), 0.1)], []), truth, torch.float32)


def test_whole_numbers_agree_where_they_are_equal():
    numbers = torch.arange(1000)
    assert disagreement(Result([numbers], []), Result([numbers.clone()], []), torch.bfloat16) is None
    other = numbers.clone()
    other[7] = 8
    assert disagreement(Result([other], []), Result([numbers], []), torch.bfloat16) == (
        "output 0: 1 of 1000 numbers differ"
    )


@pytest.fixture
def problems() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.nn.functional.normalize(torch.randn(2, 15, d, generator=generator), dim=2) for d in (6, 9)
    )
    # Rows 13 and 14 repeat rows 0 and 1: whichever of the twins is picked, the other one ties.
    return tuple(torch.cat([space[:, :13], space[:, :2]], dim=1) for space in (student, teacher))


def swapped_twins(picks: torch.Tensor) -> torch.Tensor:
    twin = torch.arange(15)
    twin[[0, 1, 13, 14]] = torch.tensor([13, 14, 0, 1])
    return twin[picks]


def test_picks_agree_up_to_ties(problems):
    student, teacher = problems
    count = torch.full((2,), 15)
    truth = ops.matching_pursuit(student, teacher, count, picks=15)
    twins = swapped_twins(truth)
    assert not torch.equal(twins, truth)
    for picks in (truth, twins, truth[:1]):
        assert pick_disagreement(Result([picks], []), Result([truth], []), student, teacher, 10.0) is None


def test_other_picks_disagree(problems):
    student, teacher = problems
    truth = ops.matching_pursuit(student, teacher, torch.full((2,), 15), picks=5)
    repeated, missing = truth[:, :1].expand(-1, 5), torch.full_like(truth, -1)
    for wrong in (truth.roll(1, dims=1), repeated, missing, truth[:, :4]):
        assert pick_disagreement(Result([wrong], []), Result([truth], []), student, teacher, 10.0)
