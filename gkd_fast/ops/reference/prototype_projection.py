"""Cosines between embeddings and prototypes as one batched matrix product."""

import torch
from torch import Tensor

from gkd_fast.ops._checks import accumulation_dtype

SHORTEST = 1e-8  # a vector shorter than this has no direction


def prototype_projection(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine [L,B,P]; see `gkd_fast.ops.prototype_projection`."""
    dtype = accumulation_dtype(embeddings.dtype, prototypes.dtype)
    return torch.bmm(unit(embeddings.to(dtype)), unit(prototypes.to(dtype)).transpose(1, 2))


def unit(vectors: Tensor) -> Tensor:
    """Vectors [...,C] divided by their lengths; 0 for one without direction."""
    square = (vectors * vectors).sum(dim=-1, keepdim=True)
    short = square < SHORTEST**2
    return vectors * square.masked_fill(short, 1.0).rsqrt().masked_fill(short, 0.0)
