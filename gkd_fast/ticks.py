"""Round distances of a chart's grid lines."""

from __future__ import annotations

import math


def round_step(reach: float, most: int) -> float:
    """The least of ..., 0.5, 1, 2, 5, 10, ... that goes at most `most` times into a positive reach."""
    least = reach / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
