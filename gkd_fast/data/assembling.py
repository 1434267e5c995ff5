"""From annotations as written to a checked data set: images looked at, boxes turned, clipped and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gkd_fast.data.annotated import AnnotatedImages, Record
from gkd_fast.data.findings import Findings
from gkd_fast.data.image_check import look_at_images
from gkd_fast.data.images import ImageFacts, is_dark_colour, is_deep, levels_for
from gkd_fast.data.listing import Entry, Listing
from gkd_fast.errors import InputError

# A box that leaves its image by less is not worth a word: the rounding of the annotation.
_ROUNDING = 0.01

CLIPPED = "boxes clipped to their image"


def assemble(
    listing: Listing,
    findings: Findings,
    *,
    classes: Sequence[str] | None = None,
    levels: float = 0,
    facts: Sequence[ImageFacts] | None = None,
) -> AnnotatedImages:
    """The data set of a listing, in its order.

    Args:
        listing: what a format's reader found.
        findings: takes what is put right, left out or wrong.
        classes: names to detect, in label order; objects of others are left out. None: those of the listing.
        levels: range of grey images of more than 8 bits (see `read_image`); 0: that of the brightest of the set.
        facts: of the images, where they are not files.

    Raises:
        InputError: for everything that cannot be used, at once.
    """
    names = _selected(listing, classes)
    label_of = np.array([names.index(name) + 1 if name in names else 0 for name in listing.names], dtype=np.int64)
    entries = listing.entries
    _refuse_shared_images(entries, findings)
    facts = look_at_images([entry.path for entry in entries]) if facts is None else facts
    levels = _common_levels(entries, facts, levels, findings)
    records: list[Record] = []
    for entry, own in zip(entries, facts, strict=True):
        if own.fault:
            findings.fault("images that cannot be read", f"{entry.path}: {own.fault}")
        elif (record := _record(len(records), entry, own, label_of, levels, findings)) is not None:
            records.append(record)
    findings.require()
    if not any((~record.ignored).any() for record in records):
        raise InputError(f"{listing.source}: expected at least one box to detect in {len(records)} images, found none")
    return AnnotatedImages(names, records, findings=findings, levels=levels)


def _refuse_shared_images(entries: Sequence[Entry], findings: Findings) -> None:
    first: dict[Path, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.path, entry)
        if other is not entry:
            text = f"{entry.path}: expected each image once, got it for {other.source} and {entry.source}"
            findings.fault("images that are there twice", text)


def _selected(listing: Listing, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes to detect: those given, or all of the data's."""
    selected = tuple(classes or listing.names)
    if len(set(selected)) < len(selected):
        raise InputError(f"{listing.source}: expected each class once, got {', '.join(selected)}")
    return selected


def _common_levels(entries: Sequence[Entry], facts: Sequence[ImageFacts], levels: float, findings: Findings) -> float:
    """The range of grey values of all images with more than 8 bits; 0 where there are none."""
    deep = [(entry, own) for entry, own in zip(entries, facts, strict=True) if is_deep(own) and not own.fault]
    for entry, own in deep:
        if not own.low >= 0:
            findings.fault(
                "images with values below 0",
                f"{entry.path}: expected grey values from 0, got mode {own.mode} with {own.low:g}; no scale",
            )
    _refuse_dark_colour(entries, facts, findings)
    if not deep or findings.faults:
        return levels
    common = levels or levels_for(max(own.peak for _, own in deep))
    units = [(entry, own) for entry, own in deep if own.mode == "F" and 0 < own.peak <= 1]
    if common > 1 and units:
        entry, own = units[0]
        findings.fault(
            "images of another scale",
            f"{entry.path}: expected grey values on the others' scale of 0 to {common - 1:g}, got 0 to {own.peak:g}",
            len(units),
        )
    for entry, own in deep:
        if own.peak >= common and common > 1:
            findings.note(f"images with grey values above {common - 1:g}, clipped", entry.path)
    scale = "0 to 1" if common == 1 else f"{np.log2(common):g} bit, 0 to {common - 1:g}"
    for entry, _ in deep:
        findings.note(f"grey images of more than 8 bits, scaled from {scale}", entry.path)
    return common


def _refuse_dark_colour(entries: Sequence[Entry], facts: Sequence[ImageFacts], findings: Findings) -> None:
    colour = [(entry, own) for entry, own in zip(entries, facts, strict=True) if own.mode == "RGB;16"]
    if colour and all(is_dark_colour(own) for _, own in colour):
        peak = max(own.peak for _, own in colour)
        findings.fault(
            "all but black images",
            f"{colour[0][0].path}: expected colours that use their 16 bits, got values up to {peak:g}, all but black; "
            "save them with 8 bits",
            len(colour),
        )


def _record(
    image_id: int, entry: Entry, facts: ImageFacts, label_of: np.ndarray, levels: float, findings: Findings
) -> Record | None:
    size = _turned(entry, facts, findings)
    if size is None:
        return None
    if facts.frames > 1:
        findings.note("files of several images, of which the first is read", entry.path)
    boxes = entry.boxes if entry.relative is None else _in_pixels(entry.boxes, size, entry.relative)
    labels = label_of[entry.labels]
    if not labels.all():
        _note_boxes("boxes of other classes left out", labels == 0, boxes, entry, findings)
    boxes, keep = _fitted(boxes, size, entry, findings, consider=labels > 0)
    keep &= labels > 0
    ignored = np.zeros(len(boxes), dtype=bool) if entry.ignored is None else entry.ignored
    own_area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    area = own_area if entry.area is None else np.where(np.isfinite(entry.area), entry.area, own_area)
    upright = size == facts.upright_size
    return Record(
        image_id,
        entry.path,
        size,
        boxes[keep].astype(np.float32),
        labels[keep],
        ignored[keep],
        area[keep],
        upright=upright,
        levels=levels if is_deep(facts) else 0,
        content=entry.content,
    )


def _turned(entry: Entry, facts: ImageFacts, findings: Findings) -> tuple[int, int] | None:
    """The image's (height, width) as its annotation sees it: turned by EXIF where the stated size allows that."""
    stated, upright = entry.stated, facts.upright_size
    if stated in (None, upright):
        if facts.orientation != 1:
            findings.note("images turned as their EXIF orientation says", entry.path)
        return upright
    if stated == facts.size:
        findings.note("images whose annotations ignore their EXIF orientation, not turned", entry.path)
        return facts.size
    exif = " (its EXIF orientation turns it)" if facts.orientation >= 5 else ""
    findings.fault(
        "images of another size",
        f"{entry.path}: expected {stated[1]} x {stated[0]} pixels as its annotation says, got "
        f"{upright[1]} x {upright[0]}{exif}",
    )
    return None


def _in_pixels(fractions: np.ndarray, size: tuple[int, int], uncertainty: np.ndarray) -> np.ndarray:
    """Corners in pixels; one that was written of a whole pixel, as far as its digits tell, is that pixel."""
    height, width = size
    scale = np.array([width, height, width, height])
    corners = fractions * scale
    whole = np.round(corners)
    return np.where(np.abs(corners - whole) <= uncertainty * scale, whole, corners)


def _fitted(
    boxes: np.ndarray, size: tuple[int, int], entry: Entry, findings: Findings, *, consider: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes clipped to the image, and which of them have an area."""
    height, width = size
    finite = np.isfinite(boxes).all(1)
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all(1)
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(1)
    touching = (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] < (width, height)).all(1)
    for kind, wrong, expected in (
        ("boxes without finite corners", ~finite, "finite corners"),
        ("boxes with swapped corners", finite & ~ordered, "x1 <= x2 and y1 <= y2"),
        (
            "boxes outside their image",
            finite & has_area & ~touching,
            f"a box that touches its image of {width} x {height} pixels",
        ),
    ):
        found = np.flatnonzero(wrong & consider)
        if len(found):
            x1, y1, x2, y2 = boxes[found[0]].tolist()
            got = f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g} (from 0)"
            findings.fault(kind, f"{entry.place(found[0])}: expected {expected}, got {got}", len(found))
    clipped = np.clip(boxes, 0, (width, height, width, height))
    keep = (clipped[:, :2].astype(np.float32) < clipped[:, 2:].astype(np.float32)).all(1)
    moved = keep & consider & (np.abs(clipped - boxes) > _ROUNDING).any(1)
    empty = consider & finite & ordered & ~keep & (touching | ~has_area)
    for kind, found in ((CLIPPED, moved), ("boxes of no area dropped", empty)):
        _note_boxes(kind, found, boxes, entry, findings)
    tiny = keep & consider & ((clipped[:, 2:] - clipped[:, :2]) < 1).any(1)
    _note_boxes("boxes less than a pixel wide or high", tiny, boxes, entry, findings)
    return clipped, keep


def _note_boxes(kind: str, found: np.ndarray, boxes: np.ndarray, entry: Entry, findings: Findings) -> None:
    """A note of the boxes [B,4] that were found, bool [B], if any were."""
    if found.any():
        place = entry.place(int(np.argmax(found)))
        findings.note(kind, place, int(found.sum()), image=entry.path, boxes=boxes[found])
