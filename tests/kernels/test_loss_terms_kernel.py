import pytest
import torch
from kernel_cases import agree, draw, leaf

from gkd_fast import ops

WEIGHTS = (5.0, 0.5, 0.25, 1.5)


def terms(**options):
    def function(discrepancy, squares, divergence, counts, variances, rows, kappa):
        given = {"variances": variances, "rows": rows, "kappa": kappa} | options
        return ops.loss_terms(discrepancy, squares, divergence, counts, weights=WEIGHTS, least=0.5, **given)

    return function


def inputs(levels=5):
    fixed = torch.rand(2, levels, generator=torch.Generator().manual_seed(1)) * 3, draw(levels).detach().abs() + 0.1
    return draw(levels), draw(2, levels, seed=2), leaf(torch.tensor(0.7)), *fixed, torch.tensor(4.0), torch.tensor(0.75)


@pytest.mark.parametrize("levels", [1, 5, 40])
def test_equals_reference(levels, checker):
    agree(terms(), *inputs(levels))
    assert checker.launches == ["loss_terms_kernel", "loss_terms_backward_kernel"]


@pytest.mark.parametrize("missing", [{0}, {2, 5}, {4}, {0, 2, 4, 5}])
def test_what_there_is_not(missing):
    given = [None if number in missing else value for number, value in enumerate(inputs())]
    agree(terms(), *given)


def test_a_number_as_attenuation_and_no_rows():
    *given, _ = inputs()
    given[5] = torch.tensor(0.0)
    agree(terms(kappa=0.75), *given, None)


def test_a_level_that_is_not_a_number_shows():
    discrepancy, squares, divergence, counts, *rest = inputs()
    counts[1, 3] = torch.nan
    with ops.use_backend("triton"):
        found = terms()(discrepancy, squares, divergence, counts, *rest)
    assert [bool(term.isnan()) for term in found] == [False, False, True, False]
