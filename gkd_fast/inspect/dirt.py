"""What reading a data set met, as a table, and the files in which it met most."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from gkd_fast.data import AnnotatedImages, PreparedDataset
from gkd_fast.data.findings import Case, Findings
from gkd_fast.inspect.examples import whole_image

_EACH = 3
"""Files shown of every kind."""
_MOST = 24
"""Files shown of all kinds together."""


@dataclass
class Dirty:
    """An image and what was met there. boxes: [n,4] as written, in pixels of the original image."""

    index: int
    kinds: dict[str, int] = field(default_factory=dict)
    boxes: list[np.ndarray] = field(default_factory=list)

    def add(self, kind: str, case: Case) -> None:
        """One more thing that was met."""
        self.kinds[kind] = self.kinds.get(kind, 0) + case.number
        if case.boxes is not None:
            self.boxes.append(case.boxes)


def dirtiest(dataset: AnnotatedImages) -> list[Dirty]:
    """The images in which reading met most, those of every kind among them, the worst first."""
    place_of = {str(record.path): index for index, record in enumerate(dataset.records)}
    stems: defaultdict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(dataset.records):
        stems[record.path.stem].append(index)

    def image_of(case: Case) -> int | None:
        if (known := place_of.get(case.image or case.place)) is not None:
            return known
        # The annotation of a single image, which has its name: "a.xml: object 3".
        file = Path(case.place.partition(": ")[0])
        found = stems.get(file.stem, []) if file.suffix.lower() in (".xml", ".txt") else []
        return found[0] if len(found) == 1 else None

    found: dict[int, Dirty] = {}
    shown = set()
    for kind, finding in dataset.findings.notes.items():
        places = ((image_of(case), case) for case in finding.cases)
        of_kind = [(place, case) for place, case in places if place is not None]
        shown |= {index for index, _ in of_kind[:_EACH]}
        for index, case in of_kind:
            found.setdefault(index, Dirty(index)).add(kind, case)
    ordered = sorted((found[index] for index in shown), key=lambda own: (-sum(own.kinds.values()), own.index))
    return ordered[:_MOST]


def dirty_images(data: PreparedDataset, key: str) -> list[str]:
    """The dirtiest images drawn, what was met in each below it.

    Args:
        data: the images, resized and not flipped.
        key: of no other pictures of the page.
    """
    figures = []
    assert isinstance(data.dataset, AnnotatedImages)
    for own in dirtiest(data.dataset):
        what = "".join(f"<br>{escape(kind)}: {number:,}" for kind, number in own.kinds.items())
        figures.append(whole_image(data, own.index, f"{key}-{own.index}", what, wrong=own.boxes))
    return figures


def findings_table(findings: Findings) -> str:
    """Every kind with its number and first case; further ones fold out."""
    rows = []
    for kind, item in findings.notes.items():
        more = [f"{escape(case.place)}{f' ({case.number:,})' if case.number > 1 else ''}" for case in item.cases]
        head = escape(item.first)
        cases = f"<details><summary>{head}</summary>{'<br>'.join(more)}</details>" if len(more) > 1 else head
        rows.append(f'<tr><td>{escape(kind)}</td><td>{item.number:,}</td><td class="text">{cases}</td></tr>')
    head = '<tr><th>what was met</th><th>number</th><th class="text">first (others fold out)</th></tr>'
    return f'<div class="wide"><table class="scores">{head}{"".join(rows)}</table></div>'
