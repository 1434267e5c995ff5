"""Norms of the loss terms' gradients, and distillation terms scaled by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gkd_fast import parallel

_MOMENTUM = 0.9  # of a weight over the measurements
_EPSILON, _MOST = 1e-6, 1e4  # as published


def gradient_norms(
    terms: Mapping[str, Tensor], features: Sequence[Tensor], scaler: torch.amp.GradScaler
) -> dict[str, Tensor]:
    """The Euclidean norm of each term's gradient on the student's feature pyramid, where all terms meet.

    Args:
        terms: loss terms, scalars with gradient.
        features: L maps [N,C,H_l,W_l] that the terms were computed from.
        scaler: keeps the gradients of fp16 in range.

    Returns:
        For each term, and for the sum of the detector's own losses under ``loss``, a float32 scalar on the device;
        0 for a term that does not reach the features.
    """
    own = [value for name, value in terms.items() if name.startswith("loss_")]
    return {name: _norm(value, features, scaler) for name, value in {**terms, "loss": torch.stack(own).sum()}.items()}


def _norm(term: Tensor, features: Sequence[Tensor], scaler: torch.amp.GradScaler) -> Tensor:
    if not term.requires_grad:
        return torch.zeros_like(term)
    gradients = torch.autograd.grad(scaler.scale(term), list(features), retain_graph=True, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    own = torch.stack(norms).square().sum() if norms else torch.zeros_like(term)
    # Each process has the gradient on its share of the batch's features, of terms whose mean over the processes counts.
    return parallel.total(own).sqrt() / (parallel.world_size() * scaler.scale(torch.ones_like(term)))


class Balance:
    """Adaptive weights of the distillation terms.

    The weight of a term is ratio * |g_own| / (|g_term| + 1e-6), at most 1e4, with g the gradients on the student's
    feature pyramid: the rule of Esser et al., Taming Transformers for High-Resolution Image Synthesis (CVPR 2021),
    equation 7, where it balances two losses on the last layer of a decoder. Here the weight is averaged over the
    measurements (momentum 0.9).

    Args:
        ratio: gradient norm of each term after scaling, as a fraction of the detector's own.
        device: of the losses.
    """

    def __init__(self, ratio: float, device: torch.device) -> None:
        self.ratio, self.device = ratio, device
        self.weights: dict[str, Tensor] = {}

    def __call__(self, terms: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The distillation terms, scaled.

        Args:
            terms: all loss terms; the detector's own begin with ``loss_``.
            norms: of this step, from `gradient_norms`; empty where nothing was measured.
        """
        names = [name for name in terms if not name.startswith("loss_")]
        for name in names if norms else []:
            weight = (self.ratio * norms["loss"] / (norms[name] + _EPSILON)).clamp(max=_MOST)
            last = self.weights.get(name, weight)
            mean = _MOMENTUM * last + (1 - _MOMENTUM) * weight
            # A measurement that is not finite changes nothing.
            self.weights[name] = torch.where(mean.isfinite(), mean, torch.where(last.isfinite(), last, 1.0))
        return {name: terms[name] * self.weights[name] for name in names if name in self.weights}

    def state_dict(self) -> dict[str, Tensor]:
        """The weights."""
        return dict(self.weights)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.weights = {name: weight.to(self.device) for name, weight in state.items()}
