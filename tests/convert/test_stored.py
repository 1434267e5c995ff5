"""What detectron2's older checkpoints hold beside weights is held against what is built."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd_fast.convert.description import Description
from gkd_fast.convert.stored import check_stored
from gkd_fast.detectors.conventions import CONVENTIONS
from gkd_fast.errors import InputError


def anchors(sizes: tuple[float, ...], ratios: tuple[float, ...], shift: float = 0.0) -> Tensor:
    """Corners, size by size, as detectron2 stores them."""
    rows = []
    for size in sizes:
        for ratio in ratios:
            width = (size**2 / ratio) ** 0.5
            rows.append([-width / 2 + shift, -ratio * width / 2, width / 2 + shift, ratio * width / 2])
    return torch.tensor(rows)


def stored(first: float, ratios: tuple[float, ...] = (0.5, 1.0, 2.0), **changes: float) -> dict[str, Tensor]:
    names = (f"proposal_generator.anchor_generator.cell_anchors.{level}" for level in range(5))
    return {name: anchors((first * 2**level,), ratios, **changes) for level, name in enumerate(names)}


def test_what_is_as_assumed_says_nothing() -> None:
    state = stored(32.0) | {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)}
    assert check_stored(state, CONVENTIONS["detectron2"], Description(), "x") == (CONVENTIONS["detectron2"], ())


def test_other_values_are_taken_and_said() -> None:
    state = stored(16.0, (0.25, 1.0)) | {"pixel_std": torch.tensor([57.0, 58.0, 59.0]).view(3, 1, 1)}
    found, notes = check_stored(state, CONVENTIONS["detectron2"], Description(), "x")
    assert found.anchor_sizes == ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))
    assert found.anchor_ratios == (0.25, 1.0)
    assert found.image_std == (59.0, 58.0, 57.0)  # red first
    assert len(notes) == 3


def test_several_sizes_a_level() -> None:
    sizes = tuple(20.0 * 2 ** (step / 3) for step in range(3))
    state = {
        f"anchor_generator.cell_anchors.{n}": anchors(tuple(s * 2**n for s in sizes), (0.5, 2.0)) for n in range(5)
    }
    found, _ = check_stored(state, CONVENTIONS["detectron2"], Description(), "x")
    assert found.anchor_sizes[1] == pytest.approx([2 * size for size in sizes], abs=1e-3)
    assert found.anchor_ratios == (0.5, 2.0)


def test_contradictions_and_shifted_anchors_are_refused() -> None:
    described = Description(conventions={"anchor_sizes": ()})
    with pytest.raises(InputError, match=r"x: anchor_sizes is .*16.0.* in the checkpoint, but .* in the configuration"):
        check_stored(stored(16.0), CONVENTIONS["detectron2"], described, "x")
    with pytest.raises(InputError, match=r"x: anchors .*expected boxes centred on the cell"):
        check_stored(stored(32.0, shift=8.0), CONVENTIONS["detectron2"], Description(), "x")
