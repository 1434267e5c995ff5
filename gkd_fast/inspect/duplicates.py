"""Images that are trained on and evaluated on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from gkd_fast.data import AnnotatedImages
from gkd_fast.data.annotated import Record

Groups = defaultdict[object, list[int]]

_LOOK = 4096


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
    alike = _common(_grouped(train, range(len(train)), _size), _grouped(val, range(len(val)), _size))
    # Files that are not compressed are all of one size, so that a look at some bytes spares reading most of them.
    nearly = [_common(_grouped(train, one, _middle), _grouped(val, other, _middle)) for one, other in alike]
    found = []
    for one, other in chain.from_iterable(nearly):
        for ours, theirs in _common(_grouped(train, one, _content), _grouped(val, other, _content)):
            found += [Shared(ours[0], index) for index in theirs]
    return sorted(found, key=lambda pair: pair.val)


def _common(one: Groups, other: Groups) -> list[tuple[list[int], list[int]]]:
    """The members of the groups that both have."""
    return [(members, other[key]) for key, members in one.items() if key in other]


def _grouped(dataset: AnnotatedImages, indices: Iterable[int], key: Callable[[Record], object]) -> Groups:
    """Positions of the images that are files, by a key."""
    groups: Groups = defaultdict(list)
    for index in indices:
        if dataset.records[index].content is None:
            groups[key(dataset.records[index])].append(index)
    return groups


def _size(record: Record) -> tuple[tuple[int, int], int]:
    return record.size, record.path.stat().st_size


def _middle(record: Record) -> bytes:
    with record.path.open("rb") as file:
        file.seek(record.path.stat().st_size // 2)
        return file.read(_LOOK)


def _content(record: Record) -> bytes:
    return hashlib.blake2b(record.path.read_bytes()).digest()
