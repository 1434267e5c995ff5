"""What a run says of its data in its first lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gkd_fast.data.annotated import AnnotatedImages
from gkd_fast.data.assembling import CLIPPED

_SHOWN = 12
_MANY = 0.2


def describe(role: str, dataset: AnnotatedImages) -> list[str]:
    """Lines on the images, the boxes of each class and what reading them met.

    Args:
        role: what the data set is for ("train").
        dataset: one that is read and checked.
    """
    records = dataset.records
    counts = class_counts(dataset)
    empty = [record for record in records if record.ignored.all()]
    ignored = sum(int(record.ignored.sum()) for record in records)
    first = f", first {empty[0].path}" if empty else ""
    head = f"{role}: {len(records):,} images, {sum(counts.values()):,} boxes: {_by_class(counts)}"
    lines = [head, f"  {len(empty):,} of {len(records):,} images have no box{first}"]
    if ignored:
        lines.append(f"  crowds and difficult objects, not trained on: {ignored:,}")
    lines += [f"  {line}" for line in dataset.findings.lines()]
    clipped = dataset.findings.notes.get(CLIPPED)
    if clipped and clipped.number > _MANY * sum(counts.values()):
        lines.append(
            "  look at them: so many boxes outside their images are often corners read as sizes, or another size"
        )
    return lines


def class_counts(dataset: AnnotatedImages) -> dict[str, int]:
    """The number of boxes to train on of every class, by its name."""
    labels = Counter(label for record in dataset.records for label in record.labels[~record.ignored].tolist())
    return {name: labels[label] for label, name in enumerate(dataset.classes, start=1)}


def in_both(train: AnnotatedImages, val: AnnotatedImages) -> list[str]:
    """A line on the images that are in both data sets, if any are."""
    paths = {record.path.resolve() for record in train.records}
    both = [record.path for record in val.records if record.path.resolve() in paths]
    return [f"  images that are also trained on: {len(both):,}, first {both[0]}"] if both else []


def _by_class(counts: dict[str, int]) -> str:
    ordered: Sequence[tuple[str, int]] = list(counts.items())
    if len(ordered) > _SHOWN:
        ordered = sorted(ordered, key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:_SHOWN])
    rest = ordered[_SHOWN:]
    if not rest:
        return shown
    none = sum(1 for _, count in rest if not count)
    return f"{shown} and {len(rest)} further classes with {sum(c for _, c in rest):,}, {none} of them without any"
