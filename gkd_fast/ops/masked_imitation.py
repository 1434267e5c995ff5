"""Decoupled feature imitation: squared differences under the painted boxes and outside of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd_fast.ops import reference
from gkd_fast.ops._checks import (
    accumulation_dtype,
    check_boxes,
    check_choice,
    check_features,
    check_same_device,
    check_size,
    check_strides,
    check_tensor,
)
from gkd_fast.ops._dispatch import backend_for, implementation
from gkd_fast.ops._library import define


class ImitationSums(NamedTuple):
    """Sums of each level, [L] each, float32 (float64 if a map is float64)."""

    foreground: Tensor
    background: Tensor
    foreground_weight: Tensor
    background_cells: Tensor


def masked_imitation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    strides: Sequence[float],
    *,
    overlap: str = "max",
    base_size: float = 56.0,
    levels: str = "own",
    trust: Sequence[Tensor] | Tensor | None = None,
) -> ImitationSums:
    """Sums of the weighted squared difference of two pyramids (paper, local feature distilling).

    A box belongs to level clip(floor(log2(sqrt((w+1)(h+1)) / base_size + 1e-6)), 0, L-1) and paints its
    omega of that level into a map W of the cells: rows int(y1/s) up to, not including, min(int(y2/s), H),
    columns likewise, after clamping negative coordinates to 0. A box without such a cell paints the cell
    (int(y1/s), int(x1/s)), moved into the map, with the maximum of omega and what is there. With S, T the
    maps and O = [W > 0]:

        foreground = sum W (S-T)^2          background = sum (1-O) r (S-T)^2        over N, C, H, W
        foreground_weight = sum W           background_cells = sum (1-O)            over N, H, W

    A box with a NaN coordinate or weight paints nothing.

    Args:
        student: L maps [N,C,H_l,W_l] (after the adapter), float32, float64, bfloat16 or float16, any memory
            format.
        teacher: L maps of the same shapes; the dtype may differ (on a GPU both are then copied to float32).
        boxes: float32 [B,4], x1 y1 x2 y2 in pixels of the padded batch.
        image_index: int64 [B], the image of each box, in [0,N).
        omega: weights [L,B], floating; no gradient flows into them.
        strides: pixels per cell, one a level.
        overlap: "max": where boxes overlap the largest omega counts, at least 0; "last": the box later in
            the order overwrites, as the published code does.
        levels: "own": a box paints the level of its size alone; "every": all levels, omega of each.
        trust: r, the weights of cells outside of boxes, L maps [N,H_l,W_l], or all of them one after another in one
            tensor [sum of N*H_l*W_l], floating; no gradient flows into them. None: 1.
        base_size: side in pixels at which boxes leave level 0 for level 1 is twice this.

    Returns:
        ImitationSums; `foreground` and `background` are differentiable in `student` and `teacher`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    where = boxes, image_index, omega, strides
    squares, weights = imitation_sums(
        student, teacher, *where, overlap=overlap, base_size=base_size, levels=levels, trust=trust
    )
    return ImitationSums(*squares.unbind(), *weights.unbind())


def imitation_sums(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    strides: Sequence[float],
    *,
    overlap: str = "max",
    base_size: float = 56.0,
    levels: str = "own",
    trust: Sequence[Tensor] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums of `masked_imitation` as they are made: in two tensors, for what is done to all of them alike.

    Returns:
        `foreground` and `background` [2,L], differentiable in `student` and `teacher`; `foreground_weight` and
        `background_cells` [2,L].

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    _check(student, teacher, boxes, image_index, omega, strides, overlap, base_size)
    check_choice("levels", levels, ("own", "every"))
    base_size = base_size if levels == "own" else 0.0
    flat = None if trust is None else _flat_trust(trust, student)
    double = accumulation_dtype(student[0].dtype, teacher[0].dtype) == torch.float64
    backend = backend_for("masked_imitation", boxes.device, ("cpu",) if double else ("cpu", "triton"))
    if backend == "reference":
        return reference.masked_imitation(
            student, teacher, boxes, image_index, omega, strides, overlap=overlap, base_size=base_size, trust=flat
        )
    options = [float(s) for s in strides], overlap == "last", float(base_size)
    return _Imitation.apply(backend, len(student), boxes, image_index, omega, flat, *options, *student, *teacher)


def _fake(
    student: list[Tensor],
    teacher: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    trust: Tensor | None,
    strides: list[float],
    last: bool,
    base_size: float,
) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(student[0].dtype, teacher[0].dtype)
    cells = sum(s.shape[0] * s.shape[2] * s.shape[3] for s in student)
    shapes = (2, len(student)), (2, len(student)), (2, cells)
    return tuple(student[0].new_empty(shape, dtype=dtype) for shape in shapes)


def _fake_backward(
    gradient: Tensor,
    student: list[Tensor],
    teacher: list[Tensor],
    weights: Tensor,
    need: list[bool],
) -> list[Tensor]:
    return [
        torch.empty_like(feature) if needed else feature.new_empty(0)
        for feature, needed in zip((*student, *teacher), need, strict=True)
    ]


_forward = define(
    "masked_imitation(Tensor[] student, Tensor[] teacher, Tensor boxes, Tensor image_index, Tensor omega,"
    " Tensor? trust, float[] strides, bool last, float base_size) -> (Tensor, Tensor, Tensor)",
    _fake,
)
_backward = define(
    "masked_imitation_backward(Tensor gradient, Tensor[] student, Tensor[] teacher, Tensor weights, bool[] need)"
    " -> Tensor[]",
    _fake_backward,
)


class _Imitation(torch.autograd.Function):
    """The kernel also returns the cells' weights [2, sum of N*H*W]: with them backward is one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        levels: int,
        boxes: Tensor,
        image_index: Tensor,
        omega: Tensor,
        trust: Tensor | None,
        strides: list[float],
        last: bool,
        base_size: float,
        *maps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        student, teacher = maps[:levels], maps[levels:]
        forward = implementation(_forward, backend, boxes.device)
        squares, totals, weights = forward(student, teacher, boxes, image_index, omega, trust, strides, last, base_size)
        ctx.backend, ctx.levels = backend, levels
        ctx.save_for_backward(weights, *maps)
        ctx.mark_non_differentiable(totals)
        ctx.set_materialize_grads(False)
        return squares, totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        weights, *maps = ctx.saved_tensors
        if gradient is None:
            return (None,) * (9 + len(maps))
        need = ctx.needs_input_grad[-len(maps) :]
        backward = implementation(_backward, ctx.backend, weights.device)
        gradients = backward(gradient, maps[: ctx.levels], maps[ctx.levels :], weights, list(need))
        wanted = (g if needed else None for g, needed in zip(gradients, need, strict=True))
        return *(None for _ in range(9)), *wanted


def _flat_trust(trust: Sequence[Tensor] | Tensor, student: Sequence[Tensor]) -> Tensor:
    cells = sum(s.shape[0] * s.shape[2] * s.shape[3] for s in student)
    if isinstance(trust, Tensor):
        check_tensor("trust", trust, "[cells]")
        check_size("trust", "cells", trust.shape[0], cells)
        check_same_device(student=student[0], trust=trust)
        return trust.detach()
    check_size("trust", "levels", len(trust), len(student))
    for level, (r, s) in enumerate(zip(trust, student, strict=True)):
        check_tensor(f"trust[{level}]", r, "[N,H,W]")
        expected = (s.shape[0], *s.shape[2:])
        if tuple(r.shape) != expected:
            raise ValueError(f"trust[{level}]: expected shape {expected} of the student's cells, got {tuple(r.shape)}")
    check_same_device(student=student[0], trust=trust[0])
    return torch.cat([r.detach().flatten() for r in trust])


def _check(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    omega: Tensor,
    strides: Sequence[float],
    overlap: str,
    base_size: float,
) -> None:
    check_features("student", student)
    check_features("teacher", teacher)
    check_size("teacher", "levels", len(teacher), len(student))
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape != t.shape:
            raise ValueError(f"teacher[{level}]: expected shape {tuple(s.shape)} as the student, got {tuple(t.shape)}")
    check_boxes(student, boxes, image_index)
    check_tensor("omega", omega, "[L,B]")
    check_size("omega", "L", omega.shape[0], len(student))
    check_size("omega", "B", omega.shape[1], boxes.shape[0])
    check_same_device(student=student[0], teacher=teacher[0], omega=omega)
    check_strides(strides, len(student))
    check_choice("overlap", overlap, ("max", "last"))
    if not base_size > 0:
        raise ValueError(f"base_size: expected a positive number of pixels, got {base_size}")
