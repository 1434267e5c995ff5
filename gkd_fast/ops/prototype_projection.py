"""Cosines between instance embeddings and prototypes, on every level."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import accumulation_dtype, check_same_device, check_size, check_tensor
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define


def prototype_projection(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """cos = x.p / (|x| |p|) of every embedding with every prototype of its level (paper, robust distilling).

    A vector shorter than 1e-8 has no direction: its cosines and its gradient are 0.

    Args:
        embeddings: [L,B,C], float32, float64, bfloat16 or float16.
        prototypes: [L,P,C], likewise; the two dtypes may differ.

    Returns:
        [L,B,P], float32 (float64 if an input is float64). Differentiable in both.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_tensor("embeddings", embeddings, "[L,B,C]")
    check_tensor("prototypes", prototypes, "[L,P,C]")
    check_size("prototypes", "L", prototypes.shape[0], embeddings.shape[0])
    check_size("prototypes", "C", prototypes.shape[2], embeddings.shape[2])
    check_same_device(embeddings=embeddings, prototypes=prototypes)
    double = accumulation_dtype(embeddings.dtype, prototypes.dtype) == torch.float64
    backend = backend_for("prototype_projection", embeddings.device, ("cpu",) if double else ("cpu", "triton"))
    if backend == "reference":
        return reference.prototype_projection(embeddings, prototypes)
    return _Projection.apply(embeddings, prototypes, backend)


def _fake(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    shape = (*embeddings.shape[:2], prototypes.shape[1])
    return embeddings.new_empty(shape, dtype=accumulation_dtype(embeddings.dtype, prototypes.dtype))


def _fake_backward(
    gradient: Tensor, embeddings: Tensor, prototypes: Tensor, need_embeddings: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    return (
        embeddings.new_empty(embeddings.shape if need_embeddings else (0,)),
        prototypes.new_empty(prototypes.shape if need_prototypes else (0,)),
    )


_forward = define("prototype_projection(Tensor embeddings, Tensor prototypes) -> Tensor", _fake)
_backward = define(
    "prototype_projection_backward(Tensor gradient, Tensor embeddings, Tensor prototypes,"
    " bool need_embeddings, bool need_prototypes) -> (Tensor, Tensor)",
    _fake_backward,
)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, prototypes: Tensor, backend: str) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(embeddings, prototypes)
        return implementation(_forward, backend, embeddings.device)(embeddings, prototypes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[:2]
        gradients = implementation(_backward, ctx.backend, gradient.device)(gradient, *ctx.saved_tensors, *need)
        return *(g if needed else None for g, needed in zip(gradients, need, strict=True)), None
