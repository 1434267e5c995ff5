"""What detectron2's older checkpoints hold beside weights: anchors, and the statistics of pixels."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from gkd_fast.convert.description import Description
from gkd_fast.detectors.conventions import Anchors, Conventions
from gkd_fast.errors import InputError

_NEAR = 1e-3  # relative


def check_stored(
    state: dict[str, Tensor], conventions: Conventions, described: Description, origin: str
) -> tuple[Conventions, tuple[str, ...]]:
    """The conventions, with what the checkpoint itself says where no configuration said it.

    Args:
        state: weights by detectron2's names.
        conventions: as known so far.
        described: what a configuration said.
        origin: of the weights, for messages.

    Raises:
        InputError: if checkpoint and configuration contradict each other, and for anchors that are not centred on their
            cells or not of the same shapes in all sizes.
    """
    found = _statistics(state, conventions) | _anchors(state, origin)
    notes = []
    for name, value in found.items():
        known = getattr(conventions, name)
        if name == "anchor_sizes" and not known:
            known = _DEFAULT_SIZES.get(len(value[0]), ())
        if _same(known, value):
            continue
        if name in described.conventions:
            raise InputError(f"{origin}: {name} is {value} in the checkpoint, but {known} in the configuration")
        conventions = dataclasses.replace(conventions, **{name: value})
        notes.append(f"{name} as the checkpoint says: {value}")
    return conventions, tuple(notes)


_DEFAULT_SIZES = {
    1: tuple((32.0 * 2**level,) for level in range(5)),
    3: tuple(tuple(32.0 * 2 ** (level + step / 3) for step in range(3)) for level in range(5)),
}


def _statistics(state: dict[str, Tensor], conventions: Conventions) -> dict[str, tuple[float, ...]]:
    found = {}
    for name in ("mean", "std"):
        value = state.get(f"pixel_{name}")
        if value is not None and value.numel() == 3:
            numbers = tuple(round(number, 4) for number in value.flatten().tolist())
            found[f"image_{name}"] = numbers[::-1] if conventions.bgr else numbers
    return found


def _anchors(state: dict[str, Tensor], origin: str) -> dict[str, tuple[Any, ...]]:
    """Sizes and ratios of the anchors that are stored as corners [A,4] of each level, size by size."""
    cells = {
        int(match[1]): value.double()
        for name, value in state.items()
        if (match := re.fullmatch(r"(?:.*\.)?anchor_generator\.cell_anchors\.(\d)", name))
    }
    if not cells:
        return {}
    levels = [cells[level] for level in sorted(cells)]
    sides = [level[:, 2:] - level[:, :2] for level in levels]
    sizes = [own.prod(1).sqrt() for own in sides]
    count = _distinct(sizes[0])
    ratios = (sides[0][:, 1] / sides[0][:, 0])[: len(sizes[0]) // count]
    found = {
        "anchor_sizes": tuple(tuple(round(v, 3) for v in own[:: len(ratios)].tolist()) for own in sizes),
        "anchor_ratios": tuple(round(v, 4) for v in ratios.tolist()),
    }
    rebuilt = Anchors(
        found["anchor_sizes"], 4, Conventions(rounded_anchors=False, anchor_ratios=found["anchor_ratios"])
    )
    for level, own in zip(levels, found["anchor_sizes"], strict=True):
        ours = rebuilt.generate_anchors(list(own), list(found["anchor_ratios"]), torch.float64)
        ours = ours.unflatten(0, (len(ratios), -1)).transpose(0, 1).flatten(0, 1)
        if ours.shape != level.shape or (ours - level).abs().max() > 10 * _NEAR * level.abs().max():
            raise InputError(
                f"{origin}: anchors {[[round(v, 1) for v in row] for row in level.tolist()[:3]]}...; expected boxes "
                "centred on the cell, of the same ratios in all sizes"
            )
    return found


def _distinct(sizes: Tensor) -> int:
    """How many sizes there are, which stand in runs of equals."""
    return 1 + int(((sizes[1:] / sizes[:-1] - 1).abs() > 10 * _NEAR).sum())


def _same(known: tuple[Any, ...], value: tuple[Any, ...]) -> bool:
    one, other = (torch.tensor(numbers, dtype=torch.float64) for numbers in (known, value))
    return one.shape == other.shape and bool(((one - other).abs() <= _NEAR * other.abs().clamp(min=1)).all())
