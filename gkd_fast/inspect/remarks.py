"""What a reader should know first: facts that often mean a mistake, or a setting to be changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gkd_fast.data import AnnotatedImages
from gkd_fast.detectors.anchor_fit import ANCHOR_SIZES, MATCH, unmatched_by_size
from gkd_fast.inspect.inspection import Inspection

_FEW = 20
"""Training boxes below which a class is hardly learned."""
_CELLS = 2
"""Cells of the finest map below which a box is hardly seen."""
_MANY = 0.05
"""Share of the boxes above which something is worth a remark."""
_ALIKE = 0.002
_SHOWN = 6


def remarks(inspection: Inspection) -> list[str]:
    """Sentences, none where nothing stands out."""
    return [
        *_of_classes(inspection),
        *_of_sizes(inspection),
        *_of_images(inspection),
        *_of_reading(inspection),
    ]


def anchor_line(inspection: Inspection) -> str:
    """How many training boxes no anchor fits, and of which classes."""
    count, total = int(inspection.unmatched.sum()), len(inspection.train.label)
    sides = ", ".join(f"{round(side)}" for level in inspection.levels for side in level.sides[:1])
    strides = ", ".join(str(level.stride) for level in inspection.levels)
    text = (
        f"anchors of {sides} pixels on strides {strides}: none reaches an IoU of {MATCH:g} with {count:,} of "
        f"{total:,} training boxes ({_share(count, total)})"
    )
    per_class = inspection.train.per_class()
    worst = sorted(np.flatnonzero(inspection.unmatched), key=lambda k: -inspection.unmatched[k] / per_class[k])
    named = [f"{inspection.train.classes[k]} {inspection.unmatched[k]:,} of {per_class[k]:,}" for k in worst[:_SHOWN]]
    return text + (f"; highest share: {', '.join(named)}" if named else "")


def _of_classes(inspection: Inspection) -> Iterator[str]:
    facts = inspection.facts
    never = [item.name for item in facts if not item.train]
    if never:
        yield f"no training box of {_named(never)}: these classes cannot be learned"
    few = [f"{item.name} ({item.train})" for item in facts if 0 < item.train < _FEW]
    if few:
        yield f"fewer than {_FEW} training boxes of {_named(few)}"
    unseen = [item.name for item in facts if item.train and not item.val]
    if unseen:
        yield f"no validation box of {_named(unseen)}: AP says nothing of them"


def _of_sizes(inspection: Inspection) -> Iterator[str]:
    shapes, data = inspection.shapes[0], inspection.config.data
    total = len(shapes)
    least = _CELLS * inspection.levels[0].stride
    tiny = int((np.sqrt(shapes.prod(1)) < least).sum())
    if tiny > _MANY * total:
        yield (
            f"{tiny:,} of {total:,} training boxes ({_share(tiny, total)}) are smaller than {least} pixels at "
            f"--short-side {data.short_side}, {_CELLS} cells of the finest map: a larger --short-side helps"
        )
    without = int(inspection.unmatched.sum())
    if without > _MANY * total:
        shares = unmatched_by_size(shapes, inspection.spec, ANCHOR_SIZES)
        # The largest of those that hardly differ: small anchors stand for fewer of the large boxes.
        best = max(size for size, share in shares.items() if share <= min(shares.values()) + _ALIKE)
        helps = (
            f": --anchor-size {best} leaves {100 * shares[best]:.1f} %" if 2 * shares[best] * total < without else ""
        )
        yield f"no anchor fits {without:,} of {total:,} training boxes ({_share(without, total)}){helps}"
    whole = inspection.train.shapes.prod(1) > 0.95 * inspection.train.sizes.prod(1)[inspection.train.image]
    if whole.sum() > _MANY * total:
        yield f"{int(whole.sum()):,} training boxes are as large as their image: labels of images, and no boxes?"


def _of_images(inspection: Inspection) -> Iterator[str]:
    counts = inspection.train.per_image()
    most = inspection.config.model.detections
    if crowded := int((counts > most).sum()):
        yield f"{crowded:,} training images have more than {most} boxes, the most that is detected (--detections)"
    empty = int((counts == 0).sum())
    if 2 * empty > len(counts):
        yield f"{empty:,} of {len(counts):,} training images have no box: are all annotations found?"
    if again := int(inspection.repeated.sum()):
        image = inspection.train.image[np.argmax(inspection.repeated)]
        yield f"training boxes that stand in their image twice: {again:,}, first {_image_name(inspection, int(image))}"
    if inspection.shared:
        first = inspection.shared[0]
        names = _image_name(inspection, first.val, "val"), _image_name(inspection, first.train)
        yield (
            f"{len(inspection.shared):,} of {len(inspection.val.sizes):,} validation images are training images byte "
            f"for byte, so that AP is too high, first {names[0]} = {names[1]}"
        )


def _of_reading(inspection: Inspection) -> Iterator[str]:
    images = inspection.images
    roles = {"the data": images.train} if images.parted else {"train": images.train, "val": images.val}
    for role, dataset in roles.items():
        if isinstance(dataset, AnnotatedImages) and dataset.findings.notes:
            kinds = [f"{kind} ({item.number:,})" for kind, item in dataset.findings.notes.items()]
            yield f"reading {role} met: {_named(kinds)}"


def _image_name(inspection: Inspection, index: int, role: str = "train") -> str:
    dataset = getattr(inspection.images, role)
    return str(dataset.records[index].path) if isinstance(dataset, AnnotatedImages) else f"scene {index}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "0 %"
