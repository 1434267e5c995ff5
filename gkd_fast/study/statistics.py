"""Means over few seeds and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval, mean ± half_width.

    Attributes:
        mean: of the values.
        half_width: of the interval; None for a single value, whose spread is unknown.
        count: number of values.
    """

    mean: float
    half_width: float | None
    count: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent, normally distributed values of unknown variance.

    Args:
        values: one or more, such as one a seed, or the differences of pairs of the same seed.
        confidence: probability that the interval holds the true mean, between 0 and 1.

    Raises:
        ValueError: for no values.
    """
    if not values:
        raise ValueError("values: expected at least one, got none")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Interval(mean, None, 1)
    return Interval(mean, t_quantile(confidence, count - 1) * stdev(values, mean) / math.sqrt(count), count)


def t_quantile(confidence: float, degrees: int) -> float:
    """The t for which a variable of Student's distribution lies within [-t, t] with probability `confidence`.

    The inverse, by bisection, of the finite series of Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.3 and 26.7.4.

    Args:
        confidence: between 0 and 1.
        degrees: of freedom, at least 1.

    Raises:
        ValueError: for arguments out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _probability(theta: float, degrees: int) -> float:
    """A(t | degrees) = P(|T| <= t) at theta = arctan(t / sqrt(degrees))."""
    odd = degrees % 2
    power, total = (math.cos(theta) if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += power
        power *= math.cos(theta) ** 2 * (k - 1) / k
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
