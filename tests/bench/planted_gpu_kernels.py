"""Kernels of which it is known what a compiler makes of them."""

import triton
import triton.language as tl


@triton.jit
def scale(source, target, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at) * factor)


@triton.jit
def scale_columns(source, target, factor, BLOCK: tl.constexpr):
    at = 3 * (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    tl.store(target + at, tl.load(source + at) * factor)


@triton.jit
def product(a, b, target, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(target + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@triton.jit
def add_up(source, target, BLOCK: tl.constexpr):
    tl.atomic_add(target, tl.sum(tl.load(source + tl.arange(0, BLOCK))))


@triton.jit
def swap_in(flag):
    tl.atomic_cas(flag, 0, 1)
