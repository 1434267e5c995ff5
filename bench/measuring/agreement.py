"""Whether an implementation computes what the reference computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative error, of a whole tensor in the Euclidean norm, that rounding alone explains: some ten units in the
# last place of the dtype, because an input is rounded, summed and rounded again on different ways.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# Gains of two candidates that are closer than this, relatively, are a tie in float32.
TIE = 1e-4


@dataclass(frozen=True)
class Result:
    """What one run computed: the operator's outputs and the gradients of its differentiable inputs."""

    outputs: Sequence[Tensor]
    gradients: Sequence[Tensor | None]


def disagreement(result: Result, truth: Result, dtype: torch.dtype) -> str | None:
    """What differs from the reference by more than the dtype's tolerance, in words; None: nothing."""
    kinds = (("output", result.outputs, truth.outputs), ("gradient", result.gradients, truth.gradients))
    for kind, got, expected in kinds:
        if len(got) != len(expected):
            return f"{len(got)} {kind}s instead of {len(expected)}"
        for index, (g, e) in enumerate(zip(got, expected, strict=True)):
            reason = _difference(g, e, TOLERANCE[dtype])
            if reason:
                return f"{kind} {index}: {reason}"
    return None


def _difference(got: Tensor | None, expected: Tensor | None, tolerance: float) -> str | None:
    if got is None or expected is None:
        return None if got is expected else "missing in one of the two"
    if got.shape != expected.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    if not expected.is_floating_point():
        differing = int((got != expected).sum())
        return f"{differing} of {expected.numel()} numbers differ" if differing else None
    if not torch.equal(got.isnan(), expected.isnan()):
        return "NaN at other places"
    error = torch.linalg.vector_norm((got.double() - expected.double()).nan_to_num())
    norm = torch.linalg.vector_norm(expected.double().nan_to_num())
    relative = float(error / norm) if norm > 0 else float(error)
    return None if relative <= tolerance else f"relative error {relative:.1e}"


def pick_disagreement(result: Result, truth: Result, student: Tensor, teacher: Tensor, alpha: float) -> str | None:
    """Like `disagreement` for matching pursuit: other picks are accepted only where gains tie.

    The result may hold the first problems only. A problem whose picks are the reference's agrees. Of the
    others every pick has to be, in float64, a best one for the residual that the picks before it left: a tie
    broken differently leads to another residual, so later picks can't be compared one to one.
    """
    got, expected = result.outputs[0], truth.outputs[0][: len(result.outputs[0])]
    if got.shape != expected.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    for problem in (got != expected).any(dim=1).argwhere()[:, 0].tolist():
        shortfall = _greedy_shortfall(student[problem], teacher[problem], got[problem].tolist(), alpha)
        if shortfall > TIE:
            return f"problem {problem}: a pick explains {shortfall:.1e} less than the best one"
    return None


def _greedy_shortfall(a: Tensor, b: Tensor, picks: Sequence[int], alpha: float) -> float:
    """How far, relatively, any pick's gain sum_n (u w_a + v w_b) stays behind the best of its round.

    All rows are candidates and no row is taken twice; a pick that breaks this falls behind by 1.
    """
    if len(set(picks)) < len(picks) or not all(0 <= pick < len(a) for pick in picks):
        return 1.0
    a, b = a.double(), b.double()
    residual_a, residual_b = a, b
    free = torch.ones(len(a), dtype=torch.bool, device=a.device)
    worst = 0.0
    for pick in picks:
        u, v = a @ residual_a.T, b @ residual_b.T
        w_a = ((1.0 + alpha) * u + alpha * v) / (1.0 + 2.0 * alpha)
        w_b = ((1.0 + alpha) * v + alpha * u) / (1.0 + 2.0 * alpha)
        gain = (u * w_a + v * w_b).sum(dim=1)
        worst = max(worst, float(1.0 - gain[pick] / gain[free].max()))
        free[pick] = False
        residual_a = residual_a - w_a[pick][:, None] * a[pick]
        residual_b = residual_b - w_b[pick][:, None] * b[pick]
    return worst
