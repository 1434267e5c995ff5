"""Intervals over seeds against tables and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from gkd_fast.study.statistics import Interval, mean_interval, t_quantile


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    [
        # Printed tables of Student's distribution, two-sided.
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 5, 2.571),
        (0.95, 9, 2.262),
        (0.95, 30, 2.042),
        (0.99, 2, 9.925),
        (0.90, 7, 1.895),
    ],
)
def test_quantiles_agree_with_printed_tables(confidence: float, degrees: int, quantile: float) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantiles_of_one_and_two_degrees_have_closed_forms(confidence: float) -> None:
    assert t_quantile(confidence, 1) == pytest.approx(math.tan(math.pi / 2 * confidence), rel=1e-9)
    assert t_quantile(confidence, 2) == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)), rel=1e-9)


def test_many_degrees_are_a_normal_distribution() -> None:
    assert t_quantile(0.95, 100_000) == pytest.approx(1.959964, abs=1e-4)


def test_the_interval_of_three_seeds() -> None:
    # Mean 2, standard deviation 1, t = 4.302653: 4.302653 / sqrt(3) = 2.484138.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.count) == (2.0, 3)
    assert interval.half_width == pytest.approx(2.484138, abs=1e-6)


def test_two_values_and_one() -> None:
    # Standard deviation sqrt(2), t = 12.706205: 12.706205 * sqrt(2) / sqrt(2).
    assert mean_interval([4.0, 6.0]).half_width == pytest.approx(12.706205, abs=1e-6)
    assert mean_interval([4.0]) == Interval(4.0, None, 1)


def test_equal_values_have_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]).half_width == 0


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="values: expected at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1, got 95"):
        t_quantile(95, 2)
    with pytest.raises(ValueError, match="degrees: expected at least 1, got 0"):
        t_quantile(0.95, 0)
