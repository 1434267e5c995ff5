"""Terms of the loss, number by number."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def loss_terms(
    discrepancy: Tensor | None,
    squares: Tensor,
    divergence: Tensor | None,
    counts: Tensor,
    variances: Tensor | None,
    rows: Tensor | None,
    kappa: Tensor | float,
    weights: Sequence[float],
    least: float,
) -> tuple[Tensor, ...]:
    """The four terms; see `gkd_fast.ops.loss_terms`."""
    divisors = counts.clamp(min=least)
    if variances is not None:
        divisors = divisors * variances
    foreground, background = (squares / divisors).sum(1).unbind()
    nothing = squares.new_zeros(())
    return (
        nothing if discrepancy is None else kappa * weights[0] * discrepancy.sum(),
        kappa * weights[1] * foreground,
        kappa * weights[2] * background,
        nothing if divergence is None or rows is None else weights[3] * (divergence / rows.clamp(min=1)),
    )
