"""Cosines between instance embeddings and prototypes, on every level."""

from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._checks import check_same_device, check_size, check_tensor


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
    return reference.prototype_projection(embeddings, prototypes)
