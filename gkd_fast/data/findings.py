"""What reading a data set meets: what was put right is noted, what cannot be used is refused, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gkd_fast.errors import InputError


@dataclass
class Finding:
    """number: how often it was met. first: where first, or what was met there."""

    number: int
    first: str


class Findings:
    """Findings by kind, each with its number and the first case.

    Attributes:
        notes: what was put right or left out, by what it is ("boxes clipped to their image").
        faults: what cannot be used, by kind.
    """

    def __init__(self) -> None:
        self.notes: dict[str, Finding] = {}
        self.faults: dict[str, Finding] = {}

    def note(self, kind: str, first: str | Path, number: int = 1) -> None:
        """Something that was put right or left out, `number` times."""
        _add(self.notes, kind, str(first), number)

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
