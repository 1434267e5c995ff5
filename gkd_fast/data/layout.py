"""How a data set lies in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gkd_fast.data.findings import Findings
from gkd_fast.data.listing import Listing
from gkd_fast.errors import InputError

Reader = Callable[[Findings], Listing]


@dataclass(frozen=True)
class Layout:
    """A data set whose format and splits are known, and nothing read yet.

    kind: format. what: the layout in words. root: folder. splits: a reader for each split, by its name.
    """

    kind: str
    what: str
    root: Path
    splits: Mapping[str, Reader]

    def reader(self, split: str) -> Reader:
        """The reader of a split.

        Raises:
            InputError: for a name that is no split.
        """
        if split not in self.splits:
            raise InputError(f"{self.root}: expected a split of {', '.join(self.splits)} ({self.what}), got {split!r}")
        return self.splits[split]


def choose_splits(layout: Layout) -> tuple[str, str]:
    """The splits to train on and to evaluate on, by their names; the second is empty where there is only one.

    Where a part of PASCAL VOC has both ``trainval`` and ``test``, it is these, as is the custom there; several parts,
    such as VOC2007 and VOC2012, are trained on together.

    Raises:
        InputError: for names that do not tell.
    """
    names = list(layout.splits)
    if len(names) == 1:
        return names[0], ""
    last = {name: name.rsplit("/", 1)[-1].lower() for name in names}
    both = {"trainval", "test"} <= set(last.values())
    orders = (("trainval", "train"), ("test", "val")) if both else (("train",), ("val", "valid", "dev", "test"))
    train, val = ("+".join(_matching(last, order)) for order in orders)
    if not train:
        raise InputError(f"{layout.root}: --train-split: expected one of {', '.join(names)}, cannot tell which")
    return train, val


def _matching(last: Mapping[str, str], beginnings: tuple[str, ...]) -> list[str]:
    """Names by the first beginning that any of them has, those that are no more than it if there are such."""
    for beginning in beginnings:
        found = [name for name, end in last.items() if end == beginning]
        found = found or [name for name, end in last.items() if end.startswith(beginning)]
        if found:
            return found if "/" in found[0] else found[:1]
    return []
