"""What every format is read into: images with their boxes as written, before any image is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One image and the boxes that an annotation gives it.

    path: image file. boxes: float64 [B,4] x1 y1 x2 y2 in pixels from 0, or in fractions of the image's sides where
    `relative` is an uncertainty [B,4] of these fractions. labels: int64 [B], positions in the listing's names.
    source, places: the file, and in it each box, for messages. stated: (height, width) that the annotation gives the
    image, None where it does not. ignored: bool [B], crowds and difficult objects. area: float64 [B] in square pixels,
    NaN where it is the box's. content: opens the image where it is not a file; `path` is then its name.
    """

    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    source: Path | str
    places: Sequence[str]
    stated: tuple[int, int] | None = None
    ignored: np.ndarray | None = None
    area: np.ndarray | None = None
    relative: np.ndarray | None = None
    content: Callable[[], Path | BytesIO] | None = None

    def place(self, box: int) -> str:
        """Where a box is written."""
        return f"{self.source}: {self.places[box]}"


@dataclass(frozen=True)
class Listing:
    """The images of a split. names: of the classes, each once. source: what to name in messages."""

    names: tuple[str, ...]
    entries: list[Entry]
    source: str

    def renamed(self, names: Sequence[str]) -> Listing:
        """The same with other positions of the names, all of which have to be among `names`."""
        if tuple(names) == self.names:
            return self
        position = np.array([names.index(name) for name in self.names], dtype=np.int64)
        entries = [replace(entry, labels=position[entry.labels]) for entry in self.entries]
        return replace(self, names=tuple(names), entries=entries)


def joined(listings: Sequence[Listing]) -> Listing:
    """One listing of several, one after the other, each in the order of its images' names, so that a data set has the
    same order in any format; class names sorted where each one's are, else in the order in which they come."""
    listings = [replace(own, entries=sorted(own.entries, key=_by_file_name)) for own in listings]
    if len(listings) == 1:
        return listings[0]
    names = tuple(dict.fromkeys(name for listing in listings for name in listing.names))
    if all(list(listing.names) == sorted(listing.names) for listing in listings):
        names = tuple(sorted(names))
    entries = [entry for listing in listings for entry in listing.renamed(names).entries]
    return Listing(names, entries, " and ".join(listing.source for listing in listings))


def _by_file_name(entry: Entry) -> tuple[str, str]:
    return entry.path.name, str(entry.path)
