"""Triton's interpreter with the checks that neither it nor a GPU makes.

Every launch inside `checked_interpreter()` raises `CheckError` at the first

    out of bounds       access outside the elements of the tensor argument that the pointer came from
    masked lane         store, atomic, maximum or minimum of a value that a load without `other` left undefined
    lost update         one program loads and stores an address, without an atomic, that another one uses too
    duplicate store     two programs, or two lanes with different values, store to one address
    unordered read      one program reads what another one stores, or what it stored itself before any barrier
    bfloat16            arithmetic on bfloat16, which the interpreter does on the bits
    float atomic        a sum of floats by atomics although torch is to be deterministic

Programs run one after another, so every pair of accesses is seen in some order; launches are ordered. A
masked-off lane of a load without `other` holds a NaN with a payload of its own (integers: 0x5A in each byte),
which arithmetic hands on. A comparison loses it; then only a wrong result tells.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rounding
import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    ReduceOps,
    ReduceScanOpInterface,
    TensorHandle,
)

# Quiet NaNs whose two leading bits of mantissa are set: casts between the float types keep them, and no
# operation makes one by itself.
POISON = {
    tl.float16: np.uint16(0x7F00),
    tl.bfloat16: np.uint16(0x7FE0),
    tl.float32: np.uint32(0x7FE00000),
    tl.float64: np.uint64(0x7FFC000000000000),
}
INTEGER_POISON = 0x5A
ANY = -1  # in a record of accesses: more than one program
SHAPES_OF_POINTERS = ("addptr", "splat", "broadcast", "expand_dims", "reshape", "trans", "bitcast")
ON_BITS = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
UNCHECKED = (str(Path(triton.__file__).parent), __file__, rounding.__file__)


class CheckError(AssertionError):
    """A kernel did what is undefined on a GPU; `kind` is one of the names above."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Accesses:
    """Which programs used each byte offset of one storage: 0 none, p + 1 program p, ANY several."""

    def __init__(self, size: int) -> None:
        self.read, self.stored, self.atomic, self.barrier = (np.zeros(size, dtype=np.int32) for _ in range(4))


@dataclass
class Region:
    """One tensor argument of a launch: its elements, and the accesses to its storage."""

    name: str
    start: int
    itemsize: int
    reachable: np.ndarray  # bool, by elements from the start
    storage: int
    accesses: Accesses

    def holds(self, addresses: np.ndarray, width: int) -> np.ndarray:
        """Whether accesses of `width` bytes stay within the tensor's elements."""
        first = addresses.astype(np.int64) - self.start
        last = first + width - 1
        inside = (first >= 0) & (last < len(self.reachable) * self.itemsize)
        elements = (np.where(inside, offset, 0) // self.itemsize for offset in (first, last))
        return inside & (first % width == 0) & np.logical_and(*(self.reachable[e] for e in elements))


class Checker:
    """What the current launch did so far; `launches` lists the kernels' names of all launches."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.error: CheckError | None = None
        self.regions: list[Region] = []
        self.barriers = 1

    def begin(self, kernel: str, arguments: dict[str, Any]) -> None:
        """Record the tensors that a launch may touch; a storage's accesses are shared by its views."""
        self.launches.append(kernel)
        self.error, self.regions = None, []
        records: dict[int, Accesses] = {}
        for name, tensor in _tensors(arguments):
            storage = tensor.untyped_storage()
            record = records.setdefault(storage.data_ptr(), Accesses(storage.nbytes()))
            extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            reachable = torch.zeros(extent if tensor.numel() else 0, dtype=torch.bool)
            if tensor.numel():
                reachable.as_strided(tensor.shape, tensor.stride()).fill_(True)
            self.regions.append(
                Region(name, tensor.data_ptr(), tensor.element_size(), reachable.numpy(), storage.data_ptr(), record)
            )

    def fail(self, builder: InterpreterBuilder, kind: str, what: str) -> None:
        """Raise with the kernel, the source line and the program; the interpreter wraps it on its way up."""
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(UNCHECKED):
            frame = frame.f_back
        file, line = frame.f_code.co_filename, frame.f_lineno
        place = f"{Path(file).name}:{line} `{linecache.getline(file, line).strip()}`"
        self.error = CheckError(kind, f"{what}, kernel {self.launches[-1]}, program {builder.grid_idx}, {place}")
        raise self.error

    def origin(self, pointer: TensorHandle) -> list[Region]:
        """Arguments that a pointer came from: those that start at the address it started with, else all."""
        if "origin" not in pointer.attr:
            starts = [r for r in self.regions if (pointer.data == r.start).all()]
            pointer.attr["origin"] = starts or self.regions
        return pointer.attr["origin"]

    def locate(
        self, builder: InterpreterBuilder, pointer: TensorHandle, mask: np.ndarray
    ) -> Iterator[tuple[Region, np.ndarray, np.ndarray]]:
        """Regions that the active lanes touch, with the byte offsets in its storage and the lanes."""
        mask = np.broadcast_to(mask, pointer.data.shape).astype(bool)
        width = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
        left = mask.copy()
        for region in self.origin(pointer):
            lanes = left & region.holds(pointer.data, width)
            if lanes.any():
                yield region, pointer.data[lanes].astype(np.int64) - region.storage, lanes
                left &= ~lanes
        if left.any():
            nearest = min(self.origin(pointer), key=lambda r: abs(int(pointer.data[left][0]) - r.start))
            offset = (int(pointer.data[left][0]) - nearest.start) / nearest.itemsize
            self.fail(
                builder,
                "out of bounds",
                f"{left.sum()} lanes, the first at element {offset:g} from the start of argument {nearest.name}",
            )

    def on_load(self, builder: InterpreterBuilder, pointer: TensorHandle, mask: np.ndarray) -> None:
        me = _program(builder)
        for region, at, _ in self.locate(builder, pointer, mask):
            seen = region.accesses
            stored, barrier = seen.stored[at], seen.barrier[at]
            others = (stored != 0) & (stored != me)
            if (others & (seen.read[at] != 0) & (seen.read[at] != me)).any():
                self.fail(builder, "lost update", f"argument {region.name} is loaded and stored by another program")
            if others.any() or _by_others(seen.atomic[at], me):
                self.fail(builder, "unordered read", f"argument {region.name} is stored by another program")
            if ((stored == me) & (barrier == self.barriers)).any():
                self.fail(builder, "unordered read", f"argument {region.name} was stored with no barrier since")
            _record(seen.read, at, me)

    def on_store(
        self, builder: InterpreterBuilder, pointer: TensorHandle, value: TensorHandle, mask: np.ndarray
    ) -> None:
        me = _program(builder)
        self.refuse_poison(builder, value, mask)
        values = np.broadcast_to(value.data, pointer.data.shape)
        for region, at, lanes in self.locate(builder, pointer, mask):
            seen = region.accesses
            if _by_others(seen.stored[at], me) or _by_others(seen.atomic[at], me):
                self.fail(builder, "duplicate store", f"argument {region.name} is stored by another program")
            if _by_others(seen.read[at], me):
                self.fail(builder, "unordered read", f"argument {region.name} is read by another program")
            if _conflicting(at, values[lanes]):
                self.fail(builder, "duplicate store", f"argument {region.name}: lanes with different values")
            _record(seen.stored, at, me)
            seen.barrier[at] = self.barriers

    def on_atomic(
        self, builder: InterpreterBuilder, pointer: TensorHandle, value: TensorHandle, mask: np.ndarray
    ) -> None:
        me = _program(builder)
        self.refuse_poison(builder, value, mask)
        self.refuse_bfloat16(builder, value)
        for region, at, _ in self.locate(builder, pointer, mask):
            seen = region.accesses
            if _by_others(seen.stored[at], me):
                self.fail(builder, "lost update", f"argument {region.name} is stored without atomic by another program")
            if _by_others(seen.read[at], me):
                self.fail(builder, "unordered read", f"argument {region.name} is read by another program")
            _record(seen.atomic, at, me)

    def refuse_poison(self, builder: InterpreterBuilder, value: TensorHandle, mask: np.ndarray | bool = True) -> None:
        if (_is_poison(value) & mask).any():
            self.fail(builder, "masked lane", "a value comes from a lane that a load left undefined")

    def refuse_bfloat16(self, builder: InterpreterBuilder, *values: TensorHandle) -> None:
        if any(value.dtype.scalar == tl.bfloat16 for value in values):
            self.fail(builder, "bfloat16", "arithmetic on bfloat16; cast to float32 after the load")


def _tensors(arguments: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a launch's arguments, with its name; tuples hold several."""
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            yield from _tensors(value, key)
    elif isinstance(arguments, tuple):
        for index, value in enumerate(arguments):
            yield from _tensors(value, f"{name}[{index}]")
    elif hasattr(arguments, "data_ptr"):
        yield name, arguments if isinstance(arguments, torch.Tensor) else arguments.base
    elif isinstance(getattr(arguments, "base", None), torch.Tensor):  # a tensor descriptor
        yield name, arguments.base


def _program(builder: InterpreterBuilder) -> int:
    """The program's number, from 1."""
    x, y, z = builder.grid_idx
    return 1 + x + builder.grid_dim[0] * (y + builder.grid_dim[1] * z)


def _by_others(programs: np.ndarray, me: int) -> bool:
    return bool(((programs != 0) & (programs != me)).any())


def _record(programs: np.ndarray, at: np.ndarray, me: int) -> None:
    programs[at] = np.where((programs[at] == 0) | (programs[at] == me), me, ANY)


def _conflicting(at: np.ndarray, values: np.ndarray) -> bool:
    """Whether two lanes store different values (bit for bit) to one address."""
    order = np.argsort(at, kind="stable")
    bits = np.ascontiguousarray(values[order]).view(f"u{values.itemsize}")
    return bool(((at[order][1:] == at[order][:-1]) & (bits[1:] != bits[:-1])).any())


def _is_poison(value: TensorHandle) -> np.ndarray:
    pattern = POISON.get(value.dtype.scalar)
    if pattern is None:
        return np.zeros(value.data.shape, dtype=bool)
    sign = pattern.dtype.type(1 << (8 * pattern.itemsize - 1))
    return (np.ascontiguousarray(value.data).view(pattern.dtype) & ~sign).reshape(value.data.shape) == pattern


def _undefined(pointer: TensorHandle) -> TensorHandle:
    """What the masked-off lanes of a load hold."""
    dtype = pointer.get_element_ty()
    if dtype in POISON:
        data = np.full(pointer.data.shape, POISON[dtype])
        return TensorHandle(data if dtype == tl.bfloat16 else data.view(f"f{data.itemsize}"), dtype)
    width = max(1, dtype.primitive_bitwidth // 8)
    signed = "b" if dtype == tl.int1 else "i" if dtype.is_int_signed() else "u"
    bits = np.full((*pointer.data.shape, width), 1 if signed == "b" else INTEGER_POISON, dtype=np.uint8)
    return TensorHandle(bits.view("?" if signed == "b" else f"{signed}{width}")[..., 0], dtype)


def _truth(mask: TensorHandle) -> TensorHandle:
    """A mask of bools: Triton 3.9 spreads a scalar condition over a tensor as int32, and then refuses it."""
    return TensorHandle(mask.data.astype(bool), tl.int1)


def _memory_hooks(checker: Checker) -> dict[str, Callable[..., Any]]:
    """Replacements for the interpreter's accesses to memory."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    atomic, swap = InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.create_atomic_cas
    barrier = InterpreterBuilder.create_barrier

    def checked_load(builder: Any, pointer: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> TensorHandle:
        mask = _truth(mask)
        checker.on_load(builder, pointer, mask.data)
        other = _undefined(pointer) if other is None else other
        return load(builder, pointer, mask, other, *rest, **options)

    def checked_store(builder: Any, pointer: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> None:
        mask = _truth(mask)
        checker.on_store(builder, pointer, value, mask.data)
        return store(builder, pointer, value, mask, *rest, **options)

    def checked_atomic(builder: Any, operation: Any, pointer: Any, value: Any, mask: Any, *rest: Any) -> TensorHandle:
        if operation == ir.ATOMIC_OP.FADD and torch.are_deterministic_algorithms_enabled():
            checker.fail(builder, "float atomic", "the order of a sum by atomics is not determined")
        checker.on_atomic(builder, pointer, value, mask.data)
        return atomic(builder, operation, pointer, value, mask, *rest)

    def checked_swap(builder: Any, pointer: Any, expected: Any, value: Any, *rest: Any) -> TensorHandle:
        checker.on_atomic(builder, pointer, value, np.ones(pointer.data.shape, dtype=bool))
        return swap(builder, pointer, expected, value, *rest)

    def counted_barrier(builder: Any) -> None:
        checker.barriers += 1
        return barrier(builder)

    return {
        "create_masked_load": checked_load,
        "create_masked_store": checked_store,
        "create_atomic_rmw": checked_atomic,
        "create_atomic_cas": checked_swap,
        "create_barrier": counted_barrier,
    }


def _pointer_hook(checker: Checker, original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """An operation on pointers whose result remembers the argument they came from."""

    def carried(builder: Any, *arguments: Any) -> TensorHandle:
        result = original(builder, *arguments)
        for source in arguments:
            if isinstance(source, TensorHandle) and isinstance(source.dtype.scalar, tl.pointer_type):
                result.attr["origin"] = checker.origin(source)
        return result

    return carried


def _arithmetic_hooks(checker: Checker) -> dict[str, Callable[..., Any]]:
    """Replacements for the interpreter's arithmetic."""
    binary, unary, fma = InterpreterBuilder.binary_op, InterpreterBuilder.unary_op, InterpreterBuilder.create_fma

    def checked_binary(builder: Any, lhs: Any, rhs: Any, operation: Any) -> TensorHandle:
        if operation not in ON_BITS:
            checker.refuse_bfloat16(builder, lhs, rhs)
        result = binary(builder, lhs, rhs, operation)
        if operation in (np.fmax, np.fmin):  # these drop a NaN, and with it the trace
            result.data = np.where(_is_poison(lhs), lhs.data, np.where(_is_poison(rhs), rhs.data, result.data))
        return result

    def checked_unary(builder: Any, argument: Any, operation: Any) -> TensorHandle:
        checker.refuse_bfloat16(builder, argument)
        return unary(builder, argument, operation)

    def checked_fma(builder: Any, *arguments: Any) -> TensorHandle:
        checker.refuse_bfloat16(builder, *arguments)
        return fma(builder, *arguments)

    return {
        "binary_op": checked_binary,
        "unary_op": checked_unary,
        "create_fma": checked_fma,
        "create_dot": rounding.dot,
        "cast_impl": rounding.cast,
    }


@contextmanager
def checked_interpreter() -> Iterator[Checker]:
    """Check every launch of a Triton kernel; TRITON_INTERPRET=1 has to be set before triton is imported."""
    checker = Checker()
    call, collect = GridExecutor.__call__, GridExecutor._init_args_hst
    reduce_or_scan, extremum = ReduceScanOpInterface.apply, ReduceOps.min_max
    builder = triton.runtime.interpreter.interpreter_builder

    def checked_call(executor: Any, *arguments: Any, **options: Any) -> None:
        try:
            call(executor, *arguments, **options)
        except InterpreterError as error:
            raise (checker.error or error) from None

    def recorded(executor: Any, arguments: Any, options: Any) -> tuple[Any, Any]:
        values, named = collect(executor, arguments, options)
        checker.begin(executor.fn.__name__, dict(zip(executor.arg_names, values, strict=False)) | named)
        return values, named

    def checked_reduction(operation: Any, values: Any) -> Any:
        checker.refuse_bfloat16(builder, *(v.handle for v in (values if isinstance(values, tuple) else (values,))))
        return reduce_or_scan(operation, values)

    def checked_extremum(operation: Any, values: Any, *rest: Any, **options: Any) -> Any:
        checker.refuse_poison(builder, (values[0] if isinstance(values, tuple) else values).handle)
        return extremum(operation, values, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name, hook in (_memory_hooks(checker) | _arithmetic_hooks(checker)).items():
            patch.setattr(InterpreterBuilder, name, hook)
        for name in (f"create_{suffix}" for suffix in SHAPES_OF_POINTERS):
            patch.setattr(InterpreterBuilder, name, _pointer_hook(checker, getattr(InterpreterBuilder, name)))
        patch.setattr(GridExecutor, "__call__", checked_call)
        patch.setattr(GridExecutor, "_init_args_hst", recorded)
        patch.setattr(ReduceScanOpInterface, "apply", checked_reduction)
        patch.setattr(ReduceOps, "min_max", checked_extremum)
        yield checker
