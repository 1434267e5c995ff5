"""What a checkpoint's configuration says about its detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Description:
    """What was read.

    Attributes:
        conventions: fields of `Conventions`.
        spec: other fields of `DetectorSpec`.
        sides: short side, and longest long side, of the images in testing, in pixels; None: not said.
        by_size: outputs are ordered size by size of the anchors, not ratio by ratio.
        notes: what the user should know, a sentence each.
    """

    conventions: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    sides: tuple[int, int] | None = None
    by_size: bool = False
    notes: list[str] = field(default_factory=list)
