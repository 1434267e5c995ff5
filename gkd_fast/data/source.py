"""From a folder, or files in it, to the data sets to train on and to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gkd_fast.data import coco, voc, yolo
from gkd_fast.data.annotated import AnnotatedImages
from gkd_fast.data.assembling import assemble
from gkd_fast.data.findings import Findings
from gkd_fast.data.layout import Layout, Reader, choose_splits
from gkd_fast.data.listing import joined
from gkd_fast.data.settings import check_root
from gkd_fast.errors import InputError

FORMATS = {"coco": coco.find, "yolo": yolo.find, "voc": voc.find}
"""Formats by name, in the order in which a folder is looked at."""

DRAWN = 0.2
"""Part of the images that is kept for validation where no split is there for it."""


def recognise(root: Path, data: str = "auto") -> Layout:
    """How a data set lies in its folder; of a file, such as a data.yaml, the set that it describes.

    Args:
        root: the folder.
        data: the format to look for; auto: all of FORMATS, the first that fits.

    Raises:
        InputError: for a folder that is none, or in no format known.
    """
    check_root(root)
    for kind in FORMATS if data == "auto" else (data,):
        if layout := FORMATS[kind](root):
            return layout
    known = {
        "coco": "COCO (annotations/instances_SPLIT.json, SPLIT/_annotations.coco.json, any .json with images, "
        "annotations and categories)",
        "yolo": "YOLO (data.yaml, or images/ and labels/)",
        "voc": "PASCAL VOC (Annotations/*.xml, or .xml beside the images)",
    }
    if data == "auto":
        raise InputError(f"{root}: expected a folder in the layout of {', '.join(known.values())}; found none of them")
    others = [layout.what for find in FORMATS.values() if (layout := find(root))]
    hint = f"; it looks like {' and '.join(others)}" if others else ""
    raise InputError(f"{root}: --data {data}: expected the layout of {known[data]}; found none{hint}")


@dataclass(frozen=True)
class Source:
    """Where the training and the validation images come from.

    what: in words. train, val: readers, with the names of their splits; val None: a part of the training images.
    fraction, seed: of that part and of its draw. others: further splits that are not used.
    """

    what: str
    train: Reader
    val: Reader | None
    names: tuple[str, str]
    fraction: float = DRAWN
    seed: int = 0
    others: tuple[str, ...] = ()

    def read(self, classes: Sequence[str] = (), *, levels: float = 0) -> Iterator[AnnotatedImages]:
        """The training images, then the validation images; arguments and errors as of `read_train`."""
        if self.val is None:
            whole = self._read(self.train, classes, levels)
            for indices in self._drawn(len(whole)):
                yield whole.part(indices)
        else:
            train = self.read_train(classes, levels=levels)
            yield train
            yield self.read_val(train.classes, levels=train.levels)

    def read_train(self, classes: Sequence[str] = (), *, levels: float = 0) -> AnnotatedImages:
        """The training images.

        Args:
            classes: names to detect, in label order; empty: all of the data.
            levels: range of grey images of more than 8 bits (see `read_image`); 0: found from the images.

        Raises:
            InputError: for everything that cannot be used, at once.
        """
        whole = self._read(self.train, classes, levels)
        return whole if self.val else whole.part(self._drawn(len(whole))[0])

    def read_val(self, classes: Sequence[str], *, levels: float = 0) -> AnnotatedImages:
        """The validation images, for the classes and levels of the training images."""
        if self.val is None:
            whole = self._read(self.train, classes, levels)
            return whole.part(self._drawn(len(whole))[1])
        return self._read(self.val, classes, levels, known=False)

    def _read(self, reader: Reader, classes: Sequence[str], levels: float, *, known: bool = True) -> AnnotatedImages:
        findings = Findings()
        listing = reader(findings)
        unknown = [name for name in classes if name not in listing.names]
        if unknown and known:
            raise InputError(
                f"{listing.source}: unknown class {unknown[0]!r}, expected one of {', '.join(listing.names)}"
            )
        if unknown:
            findings.note("classes that the file does not have", unknown[0], len(unknown))
        return assemble(listing, findings, classes=classes or None, levels=levels)

    def _drawn(self, count: int) -> tuple[list[int], list[int]]:
        """The positions of the training and of the validation images."""
        size = min(max(1, round(self.fraction * count)), count - 1)
        if size < 1:
            raise InputError(f"{self.what}: expected at least 2 images to draw validation images from, got {count}")
        order = np.random.default_rng(self.seed).permutation(count)
        return sorted(order[size:].tolist()), sorted(order[:size].tolist())


def locate(
    root: Path | None,
    data: str = "auto",
    *,
    train_split: str = "",
    val_split: str = "",
    train_annotations: Path | None = None,
    train_images: Path | None = None,
    val_annotations: Path | None = None,
    val_images: Path | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> Source:
    """Find the images to train on and to evaluate on.

    Args:
        root: folder of the data set.
        data: its format, or auto.
        train_split, val_split: names, several joined by "+", or text files that name the images (VOC); empty: by
            their names.
        train_annotations, train_images, val_annotations, val_images: a COCO file of any name and the folder of its
            images, instead of a split.
        val_fraction: part of the training images to keep for validation; 0: `DRAWN` where there is no other split.
        seed: of that draw.

    Raises:
        InputError: where they are not to be found.
    """
    if train_annotations:
        train = _single(train_annotations, train_images)
        val = _single(val_annotations, val_images or train_images) if val_annotations else None
        names = str(train_annotations), str(val_annotations or "")
        return Source(f"COCO file {train_annotations}", train, val, names, val_fraction or DRAWN, seed)
    if root is None:
        raise InputError("--data-root: expected the folder of the data set, got nothing")
    layout = recognise(root, data)
    found = choose_splits(layout) if not train_split else (train_split, "")
    chosen_val = val_split or ("" if val_fraction else found[1] if not train_split else _val_for(layout, train_split))
    if val_fraction and val_split:
        raise InputError("--val-fraction: expected --val-split or this, got both")
    used = {*found[0].split("+"), *chosen_val.split("+")}
    split = _reader(layout, chosen_val) if chosen_val else None
    val = _single(val_annotations, val_images) if val_annotations else split
    return Source(
        what=f"{layout.what}, {root}",
        train=_reader(layout, found[0]),
        val=val,
        names=(found[0], chosen_val),
        fraction=val_fraction or DRAWN,
        seed=seed,
        others=tuple(name for name in layout.splits if name not in used),
    )


def open_dataset(
    root: str | Path, split: str = "", data: str = "auto", *, classes: Sequence[str] = ()
) -> AnnotatedImages:
    """A split of a data set in any of FORMATS.

        train = gkd_fast.data.open_dataset("BCCD", "trainval")
        image, target = train[0]

    Args:
        root: the folder.
        split: its name; several are joined by "+". Empty: the training split.
        data: the format; auto: found by looking.
        classes: names to detect, in label order; objects of others are left out. Empty: all of the data.

    Raises:
        InputError: a ValueError, for everything that cannot be used, at once.
    """
    layout = recognise(Path(root), data)
    source = Source(layout.what, _reader(layout, split or choose_splits(layout)[0]), None, (split, ""))
    return source._read(source.train, classes, 0)


def _reader(layout: Layout, names: str) -> Reader:
    """One reader of the splits joined by "+"."""
    readers = [_one(layout, name.strip()) for name in names.split("+")]
    return lambda findings: joined([reader(findings) for reader in readers])


def _single(annotations: Path, images: Path | None) -> Reader:
    reader = coco.single(annotations, images)
    return lambda findings: joined([reader(findings)])


def _one(layout: Layout, name: str) -> Reader:
    if name not in layout.splits and layout.kind == "voc" and name.endswith(".txt"):
        return voc.by_list(layout.root, Path(name))
    return layout.reader(name)


def _val_for(layout: Layout, train: str) -> str:
    """The validation split beside a training split that was given."""
    try:
        return next(name for name in (choose_splits(layout)[1],) if name != train)
    except (InputError, StopIteration):
        return ""
