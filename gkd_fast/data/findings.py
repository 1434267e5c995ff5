"""What reading a data set meets: what was put right is noted, what cannot be used is refused, all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gkd_fast.errors import InputError

# Cases of a kind that are remembered: enough to look at.
_MOST_CASES = 20


@dataclass(frozen=True, eq=False)
class Case:
    """Where something was met: a text that names it, how often it was met there, and what can be drawn of it.

    image: the file or name of the image, "" where none is known. boxes: float64 [n,4] x1 y1 x2 y2 in pixels as
    written, or None where it is not about boxes.
    """

    place: str
    number: int
    image: str = ""
    boxes: np.ndarray | None = None


@dataclass
class Finding:
    """number: how often it was met. first: where first, or what was met there. cases: those met most often, first
    ones first."""

    number: int
    first: str
    cases: list[Case] = field(default_factory=list)


class Findings:
    """Findings by kind, each with its number and the first case.

    Attributes:
        notes: what was put right or left out, by what it is ("boxes clipped to their image").
        faults: what cannot be used, by kind.
    """

    def __init__(self) -> None:
        self.notes: dict[str, Finding] = {}
        self.faults: dict[str, Finding] = {}

    def note(
        self,
        kind: str,
        first: str | Path,
        number: int = 1,
        *,
        image: str | Path = "",
        boxes: np.ndarray | None = None,
    ) -> None:
        """Something that was put right or left out, `number` times; see `Case` for what can be drawn of it."""
        _add(self.notes, kind, str(first), number)
        if number:
            cases = self.notes[kind].cases
            cases.append(Case(str(first), number, str(image), boxes))
            cases.sort(key=lambda case: -case.number)
            del cases[_MOST_CASES:]

    def fault(self, kind: str, first: str, number: int = 1) -> None:
        """Something that cannot be used; `first` is a sentence that names the file and what was expected there."""
        _add(self.faults, kind, first, number)

    def require(self) -> None:
        """InputError with every kind of fault, its number and its first case, unless there is none."""
        if self.faults:
            raise InputError(
                "; ".join(
                    item.first + (f" (the first of {item.number:,} {kind})" if item.number > 1 else "")
                    for kind, item in self.faults.items()
                )
            )

    def lines(self) -> list[str]:
        """A line for each kind of note."""
        return [f"{kind}: {item.number:,}, first {item.first}" for kind, item in self.notes.items()]


def _add(found: dict[str, Finding], kind: str, first: str, number: int) -> None:
    if kind in found:
        found[kind].number += number
    elif number:
        found[kind] = Finding(number, first)
