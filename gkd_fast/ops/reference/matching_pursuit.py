"""Joint matching pursuit on the Gram matrices of both spaces, all problems of a chunk at once."""

import torch
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype

_CHUNK_BYTES = 256 << 20  # of the six n x n matrices that a problem holds at once


def matching_pursuit(
    student: Tensor,
    teacher: Tensor,
    count: Tensor,
    candidates: Tensor,
    *,
    picks: int,
    alpha: float,
    repeat: bool,
) -> Tensor:
    """Picks [G,picks]; see `gkd_fast.ops.matching_pursuit`."""
    dtype = accumulation_dtype(student.dtype, teacher.dtype)
    problems, samples = student.shape[:2]
    if problems == 0 or samples == 0 or picks == 0:
        return count.new_full((problems, picks), -1)
    pieces = min(problems, 1 + problems * 6 * samples * samples * dtype.itemsize // _CHUNK_BYTES)
    inputs = (x.tensor_split(pieces) for x in (student, teacher, count, candidates))
    return torch.cat(
        [_pursue(a.to(dtype), b.to(dtype), c, may, picks, alpha, repeat) for a, b, c, may in zip(*inputs, strict=True)]
    )


def _pursue(a: Tensor, b: Tensor, count: Tensor, candidates: Tensor, picks: int, alpha: float, repeat: bool) -> Tensor:
    samples = a.shape[1]
    real = torch.arange(samples, device=a.device) < count[:, None]
    a, b = (x.masked_fill(~real[:, :, None], 0.0) for x in (a, b))
    gram_a, gram_b = (torch.bmm(x, x.transpose(1, 2)) for x in (a, b))
    # u[k,n] = a_k . residual of a_n; the residuals start as the samples themselves.
    u, v = gram_a, gram_b
    free = real & candidates
    chosen = []
    for _ in range(picks):
        # sum_n (u w_a + v w_b) without its common factor 1 / (1 + 2 alpha): most of the residual removed.
        gain = (1.0 + alpha) * (u.square().sum(2) + v.square().sum(2)) + 2.0 * alpha * (u * v).sum(2)
        pick = gain.masked_fill(~free, -1.0).argmax(dim=1, keepdim=True)
        chosen.append(pick.where(free.gather(1, pick), -1))
        if not repeat:
            free = free.scatter(1, pick, False)
        # w_a = ((1 + alpha) u + alpha v) / (1 + 2 alpha) of the pick; u_k <- u_k - (a_k . a_pick) w_a.
        row, column = pick[:, None].expand(-1, 1, samples), pick[:, None].expand(-1, samples, 1)
        u_pick, v_pick = u.gather(1, row), v.gather(1, row)
        w_a = ((1.0 + alpha) * u_pick + alpha * v_pick) / (1.0 + 2.0 * alpha)
        w_b = ((1.0 + alpha) * v_pick + alpha * u_pick) / (1.0 + 2.0 * alpha)
        u = u - gram_a.gather(2, column) * w_a
        v = v - gram_b.gather(2, column) * w_b
    return torch.cat(chosen, dim=1)
