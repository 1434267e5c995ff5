"""Prototypes without matching pursuit, to compare it with: any candidates, or those nearest to centres of k-means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ITERATIONS = 20
_SEED = 0  # the candidates differ from one generation to the next, so that the same draw picks others


def select(student: Tensor, teacher: Tensor, dense: Tensor, picks: int, selection: str) -> Tensor:
    """Candidates of one class and level that become prototypes.

    Args:
        student, teacher: L2-normalised embeddings [n,C_S], [n,C_T].
        dense: bool [n], those that may be picked, at least one.
        picks: M.
        selection: "random" or "kmeans".

    Returns:
        int64 [M], different ones; where there are fewer than M, these again.
    """
    rows = torch.where(dense)[0]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED)).to(rows.device)
    if selection == "kmeans":
        order = _nearest_to_centres(torch.cat([student[rows], teacher[rows]], 1), order[:picks])
    return rows[order[torch.arange(picks, device=rows.device) % len(order)]]


def _nearest_to_centres(points: Tensor, start: Tensor) -> Tensor:
    """Of each cluster by spherical k-means the point nearest to its centre, each once.

    Args:
        points: [n,D].
        start: int64 [k], points that are the first centres.
    """
    points = F.normalize(points, dim=1)
    centres = points[start]
    for _ in range(_ITERATIONS):
        sums = torch.zeros_like(centres).index_add_(0, (points @ centres.T).argmax(1), points)
        centres = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1), centres)
    similarity, found = points @ centres.T, []
    for cluster in range(len(centres)):
        found.append(similarity[:, cluster].argmax())
        similarity[found[-1]] = -torch.inf
    return torch.stack(found)
