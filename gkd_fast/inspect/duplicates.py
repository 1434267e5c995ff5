"""Images that are trained on and evaluated on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from gkd_fast.data import AnnotatedImages
from gkd_fast.data.annotated import Record

Kind = tuple[tuple[int, int], int]


@dataclass(frozen=True)
class Shared:
    """A validation image whose content, byte for byte, a training image has; positions in the two data sets."""

    train: int
    val: int


def shared_images(train: AnnotatedImages, val: AnnotatedImages) -> list[Shared]:
    """The validation images that are training images, under the same name or another.

    Only files are compared, and of them only the contents of those that share size in pixels and in bytes with one of
    the other split. An image that was saved anew, or cut otherwise, is not found.
    """
    groups = _by_kind(train), _by_kind(val)
    found = []
    for kind in groups[1].keys() & groups[0].keys():
        known = {_content(train.records[index]): index for index in reversed(groups[0][kind])}
        found += [
            Shared(known[content], index)
            for index in groups[1][kind]
            if (content := _content(val.records[index])) in known
        ]
    return sorted(found, key=lambda pair: pair.val)


def _by_kind(dataset: AnnotatedImages) -> dict[Kind, list[int]]:
    """Positions of the images by (height, width) and size in bytes."""
    groups: defaultdict[Kind, list[int]] = defaultdict(list)
    for index, record in enumerate(dataset.records):
        if record.content is None:
            groups[record.size, record.path.stat().st_size].append(index)
    return groups


def _content(record: Record) -> bytes:
    return hashlib.blake2b(record.path.read_bytes()).digest()
