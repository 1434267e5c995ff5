"""Cosines of embeddings and prototypes: tiled products of the raw vectors, divided by the lengths at the end."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._launch import (
    VECTOR,
    cdiv,
    gradient_precision,
    like_input,
    on_device_of,
    precisions,
    product_configuration,
    product_precision,
    ready,
    ready_vectors,
)
from gkd_fast.kernels._spec import TYPES, KernelSpec, launch, unspecialised
from gkd_fast.kernels.unit_rows import inverse_lengths, normalise_backward


@unspecialised
def projection_kernel(
    embeddings_ptr,
    prototypes_ptr,
    embedding_inverse_ptr,
    prototype_inverse_ptr,
    cosine_ptr,
    instances,
    prototypes,
    channel_vectors,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of cosine [L,B,P] = embeddings [L,B,C] . prototypes [L,P,C] / lengths."""
    channels = channel_vectors * VECTOR
    level = tl.program_id(1).to(tl.int64)
    columns = (prototypes + BLOCK_P - 1) // BLOCK_P
    b = tl.program_id(0) // columns * BLOCK_B + tl.arange(0, BLOCK_B)
    p = tl.program_id(0) % columns * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = level * instances + b, level * prototypes + p

    product = tl.zeros((BLOCK_B, BLOCK_P), tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < channels)[None, :]
        x = tl.load(
            embeddings_ptr + row[:, None] * channels + c[None, :], mask=(b < instances)[:, None] & inside, other=0.0
        )
        y = tl.load(
            prototypes_ptr + column[:, None] * channels + c[None, :], mask=(p < prototypes)[:, None] & inside, other=0.0
        )
        product = tl.dot(x.to(OPERAND), tl.trans(y.to(OPERAND)), product, input_precision=PRECISION)
    row_inverse = tl.load(embedding_inverse_ptr + row, mask=b < instances, other=0.0)
    column_inverse = tl.load(prototype_inverse_ptr + column, mask=p < prototypes, other=0.0)
    cosine = product * row_inverse[:, None] * column_inverse[None, :]
    inside = (b < instances)[:, None] & (p < prototypes)[None, :]
    tl.store(cosine_ptr + row[:, None] * prototypes + p[None, :], cosine, mask=inside)


@unspecialised
def projection_backward_kernel(
    gradient_ptr,
    vectors_ptr,
    inverse_ptr,
    result_ptr,
    rows,
    terms,
    channel_vectors,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of result [L,R,C] = gradient [L,R,K] (in memory [L,K,R] if TRANSPOSED) . unit vectors [L,K,C]."""
    channels = channel_vectors * VECTOR
    level = tl.program_id(1).to(tl.int64)
    columns = (channels + BLOCK_C - 1) // BLOCK_C
    r = tl.program_id(0) // columns * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)

    result = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, terms, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        if TRANSPOSED:
            place = (level * terms + k)[None, :] * rows + r[:, None]
        else:
            place = (level * rows + r)[:, None] * terms + k[None, :]
        g = tl.load(gradient_ptr + place, mask=(r < rows)[:, None] & (k < terms)[None, :], other=0.0)
        inverse = tl.load(inverse_ptr + level * terms + k, mask=k < terms, other=0.0)
        v = tl.load(
            vectors_ptr + (level * terms + k)[:, None] * channels + c[None, :],
            mask=(k < terms)[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        result = tl.dot(g * inverse[None, :], v.to(tl.float32), result, input_precision=PRECISION)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    tl.store(result_ptr + (level * rows + r)[:, None] * channels + c[None, :], result, mask=inside)


def _backward_configuration(dtype: torch.dtype, precision: str, transposed: bool) -> dict[str, Any]:
    return {
        "TRANSPOSED": transposed,
        "PRECISION": gradient_precision(dtype, precision),
        "BLOCK_R": 32,
        "BLOCK_K": 32,
        "BLOCK_C": 32,
        "num_warps": 4,
        "num_stages": 2,
    }


def prototype_projection(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine [L,B,P], float32; see `gkd_fast.ops.prototype_projection`."""
    x, y = ready_vectors(embeddings, prototypes)
    levels, instances, channels = x.shape
    count = y.shape[1]
    cosine = x.new_empty((levels, instances, count), dtype=torch.float32)
    configuration = product_configuration(x.dtype, product_precision(x.dtype))
    if cosine.numel():
        with on_device_of(x):
            tiles = cdiv(instances, configuration["BLOCK_B"]) * cdiv(count, configuration["BLOCK_P"])
            projection_kernel[(tiles, levels)](
                x,
                y,
                *inverse_lengths(x, y),
                cosine,
                instances,
                count,
                channels // VECTOR.value,
                **configuration,
            )
    return cosine


def prototype_projection_backward(
    gradient: Tensor, embeddings: Tensor, prototypes: Tensor, need_embeddings: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    """Gradients in the inputs' dtypes; [0] where not needed."""
    x, y = ready_vectors(embeddings, prototypes)
    gradient = ready(gradient)
    with on_device_of(x):
        inverse = inverse_lengths(x, y)
        results = (
            _combine(gradient, y, inverse[1], x, inverse[0], transposed=False) if need_embeddings else x.new_empty(0),
            _combine(gradient, x, inverse[0], y, inverse[1], transposed=True) if need_prototypes else y.new_empty(0),
        )
    return like_input(results[0], embeddings), like_input(results[1], prototypes)


def _combine(
    gradient: Tensor, vectors: Tensor, inverse: Tensor, target: Tensor, target_inverse: Tensor, *, transposed: bool
) -> Tensor:
    """Gradient of `target` [L,R,C] from that of its cosines with `vectors` [L,K,C]."""
    levels, rows, channels = target.shape
    terms = vectors.shape[1]
    result = target.new_empty((1, levels, rows, channels), dtype=torch.float32)
    configuration = _backward_configuration(target.dtype, product_precision(target.dtype), transposed)
    if result.numel():
        tiles = cdiv(rows, configuration["BLOCK_R"]) * cdiv(channels, configuration["BLOCK_C"])
        sizes = rows, terms, channels // VECTOR.value
        projection_backward_kernel[(tiles, levels)](gradient, vectors, inverse, result, *sizes, **configuration)
    return normalise_backward(result, target, target_inverse)


def configurations() -> dict[str, KernelSpec]:
    """Every form in which each kernel can be launched."""
    forms = [(dtype, precision) for dtype in TYPES for precision in precisions(dtype)]
    counts = dict.fromkeys(("instances", "prototypes", "rows", "terms", "channel_vectors"), "i32")
    floats = ("embedding_inverse_ptr", "prototype_inverse_ptr", "inverse_ptr", "cosine_ptr", "gradient_ptr")
    fixed = counts | dict.fromkeys((*floats, "result_ptr"), "*fp32")

    def types(dtype: torch.dtype) -> dict[str, str]:
        return fixed | dict.fromkeys(("embeddings_ptr", "prototypes_ptr", "vectors_ptr"), f"*{TYPES[dtype]}")

    forward = [launch(projection_kernel, types(form[0]), product_configuration(*form)) for form in forms]
    backward = [
        launch(projection_backward_kernel, types(form[0]), _backward_configuration(*form, transposed))
        for form in forms
        for transposed in (False, True)
    ]
    return {
        "projection_kernel": KernelSpec(projection_kernel, forward),
        "projection_backward_kernel": KernelSpec(projection_backward_kernel, backward),
    }


KERNELS = configurations()
