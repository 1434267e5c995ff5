"""Tiny kernels with one bug each, and correct ones that look alike."""

import triton
import triton.language as tl


@triton.jit
def scale(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2.0 * tl.load(source + at, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def no_mask_on_load(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at), mask=at < n)


@triton.jit
def no_mask_on_store(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < n, other=0.0))


@triton.jit
def before_the_start(source, target):
    tl.store(target, tl.load(source - 1))


@triton.jit
def copy_columns(source, target, pitch, columns, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(source + row * pitch + at, mask=at < columns, other=0.0)
    tl.store(target + row * columns + at, values, mask=at < columns)


@triton.jit
def sum_of_undefined(source, target, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target, tl.sum(tl.load(source + at, mask=at < n)))


@triton.jit
def maximum_of_undefined(source, target, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target, tl.max(tl.load(source + at, mask=at < n).to(tl.float32)))


@triton.jit
def sum_of_selected(source, target, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    values = tl.load(source + at, mask=at < n).to(tl.float32)
    values = tl.maximum(values, 0.0)
    tl.store(target, tl.sum(tl.where(at < n, values, 0.0)))


@triton.jit
def undefined_index(index, source, target, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    rows = tl.load(index + at, mask=at < n)
    tl.store(target + at, tl.load(source + rows), mask=at < n)


@triton.jit
def sum_without_atomic(source, target, BLOCK: tl.constexpr):
    part = tl.sum(tl.load(source + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)))
    tl.store(target, tl.load(target) + part)


@triton.jit
def sum_by_atomic(source, target, BLOCK: tl.constexpr):
    part = tl.sum(tl.load(source + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)))
    tl.atomic_add(target, part)


@triton.jit
def store_from_all(target):
    tl.store(target, 1.0)


@triton.jit
def lanes_collide(target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at // 2, at.to(tl.float32))


@triton.jit
def lanes_agree(target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at // 2, (at // 2).to(tl.float32))


@triton.jit
def read_the_neighbour(values):
    at = tl.program_id(0)
    tl.store(values + at, tl.load(values + at + 1) + 1.0)


@triton.jit
def read_what_others_stored(values, target):
    at = tl.program_id(0)
    tl.store(values + at, 1.0)
    if at > 0:
        tl.store(target, tl.load(values + at - 1))


@triton.jit
def atomic_then_read(counter, target):
    tl.atomic_add(counter, 1)
    tl.store(target + tl.program_id(0), tl.load(counter))


@triton.jit
def through_memory(scratch, target, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(scratch + at, at.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(target + at, tl.load(scratch + BLOCK - 1 - at))


@triton.jit
def in_place(values, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(values + at, tl.load(values + at, mask=at < n, other=0.0) + 1.0, mask=at < n)


@triton.jit
def add_as_bfloat16(a, b, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(a + at) + tl.load(b + at))


@triton.jit
def add_as_float32(a, b, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(a + at).to(tl.float32) + tl.load(b + at).to(tl.float32))


@triton.jit
def sum_as_bfloat16(a, target, BLOCK: tl.constexpr):
    tl.store(target, tl.sum(tl.load(a + tl.arange(0, BLOCK))))


@triton.jit
def product(a, b, target, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    at = row * BLOCK + column
    tl.store(target + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))
