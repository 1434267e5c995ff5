"""Where Triton's interpreter rounds otherwise than a GPU: bfloat16 values and tf32 products.

The interpreter keeps bfloat16 as uint16 and multiplies those integers, truncates where float32 becomes
bfloat16, and multiplies float32 exactly where a GPU takes tf32, or the sum of three tf32 products. These replacements
compute what a GPU does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast = InterpreterBuilder.cast_impl


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits (uint16) of the nearest bfloat16, ties to even; a NaN keeps its leading bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (np.where(np.isnan(values), bits, rounded) >> np.uint32(16)).astype(np.uint16)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values with the ten bits of mantissa that a tensor core keeps, rounded to nearest."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits).view(np.float32)


def cast(builder: InterpreterBuilder, source: TensorHandle, target: Any) -> TensorHandle:
    """A cast that rounds to bfloat16 as a GPU does."""
    if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
        return TensorHandle(to_bfloat16(source.data).reshape(source.data.shape), tl.bfloat16)
    return _cast(builder, source, target)


def dot(
    builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, _: int
) -> TensorHandle:
    """d + a b of float operands, accumulated in d's dtype."""
    operands = [_operand(handle, precision) for handle in (a, b)]
    if precision == ir.INPUT_PRECISION.TF32x3 and a.dtype.scalar == tl.float32:
        large = [to_tf32(operand) for operand in operands]
        (a_large, b_large), (a_small, b_small) = (
            large,
            [to_tf32(o - big) for o, big in zip(operands, large, strict=True)],
        )
        product = (a_small @ b_large + a_large @ b_small) + a_large @ b_large
        return TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)
    return TensorHandle(np.matmul(*operands, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def _operand(handle: TensorHandle, precision: Any) -> np.ndarray:
    if handle.dtype.scalar == tl.bfloat16:
        return from_bfloat16(handle.data)
    if handle.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
        return to_tf32(handle.data)
    return handle.data
