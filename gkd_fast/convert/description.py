"""What a checkpoint's configuration says about its detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gkd_fast.convert.configuration import Section


@dataclass(frozen=True)
class Said:
    """A value that the weights say too.

    Attributes:
        section: the part that it stands in.
        name: its name there; where it stands not, there is nothing to be held against the weights.
    """

    section: Section
    name: str

    def check(self, real: int, what: str) -> None:
        """Hold it against the weights.

        Raises:
            InputError: for another value.
        """
        if self.name in self.section and self.section.get(self.name) != real:
            raise self.section.refused(self.name, f"{real}, as the weights are of {what}: is it their configuration?")


@dataclass
class Description:
    """What was read.

    Attributes:
        conventions: fields of `Conventions`.
        spec: other fields of `DetectorSpec`.
        sides: short side, and longest long side, of the images in testing, in pixels; None: not said.
        by_size: outputs are ordered size by size of the anchors, not ratio by ratio.
        depth, classes: the backbone's depth and the number of classes; None: no configuration says them.
        notes: what the user should know, a sentence each.
    """

    conventions: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    sides: tuple[int, int] | None = None
    by_size: bool = False
    depth: Said | None = None
    classes: Said | None = None
    notes: list[str] = field(default_factory=list)
