"""PASCAL VOC: an XML file for each image.

VOC counts pixels from 1 and includes the last one. Boxes become continuous coordinates from 0, [xmin - 1, xmax], for
training and for evaluation alike: their width is the development kit's xmax - xmin + 1, and so is their overlap.
`difficult` objects are ignored: not in the targets, and in the ground truth with `iscrowd` 1. Boxes of zero area as
written (xmin = xmax or ymin = ymax) are dropped. Class names are all that the folder's files have, sorted, whatever
split they occur in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from gkd_fast.data.findings import Findings
from gkd_fast.data.layout import Layout, Reader
from gkd_fast.data.listing import Entry, Listing
from gkd_fast.data.places import ImagePlaces, subfolders, visible
from gkd_fast.data.suffixes import is_image
from gkd_fast.data.text import decoded, read_lines
from gkd_fast.errors import InputError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_ENCODING = re.compile(rb"^[^>]{0,200}encoding\s*=\s*[\"']([A-Za-z0-9._-]+)")


def find(root: Path) -> Layout | None:
    """The VOC layout of a folder: Annotations, JPEGImages and ImageSets; such folders side by side; or folders in
    which XML files lie beside their images."""
    parts = _parts(root)
    splits: dict[str, Reader] = {}
    what = "PASCAL VOC"
    for folder in parts:
        prefix = "" if folder == root else f"{folder.name}/"
        lists = _split_files(folder)
        for file in lists:
            splits[prefix + file.stem] = partial(_read, root, folder, parts, file)
        if not lists:
            what = "PASCAL VOC without split files"
            splits[prefix.rstrip("/") or "all"] = partial(_read, root, folder, parts, None)
    return Layout("voc", what, root, splits) if splits else None


def _parts(root: Path) -> list[Path]:
    """The folders that hold annotations of their own: the root, or those in it."""
    return [root] if _annotation_folder(root) else [folder for folder in subfolders(root) if _annotation_folder(folder)]


def _annotation_folder(folder: Path) -> Path | None:
    inner = [path for path in subfolders(folder) if path.name.lower() in ("annotations", "annotation", "xmls", "xml")]
    return next((path for path in (*inner, folder) if any(visible(path, "*.[xX][mM][lL]"))), None)


def _image_folders(folder: Path, annotations: Path) -> list[Path]:
    named = [path for path in subfolders(folder) if path.name.lower() in ("jpegimages", "images", "image", "imgs")]
    return list(dict.fromkeys((*named, annotations, folder)))


def _split_files(folder: Path) -> list[Path]:
    """The lists of names, without those that VOC has for each class of a split."""
    places = (folder / "ImageSets" / "Main", folder / "ImageSets", folder)
    annotations = _annotation_folder(folder)
    for place in places:
        files = visible(place, "*.txt")
        if place == folder and annotations is not None:
            files = [file for file in files if _names_annotations(file, annotations)]
        stems = {file.stem for file in files}
        files = [file for file in files if file.stem.rpartition("_")[2] not in stems - {file.stem}]
        if files:
            return files
    return []


def _names_annotations(file: Path, annotations: Path) -> bool:
    """Whether a text file beside the annotations is a list of their names, and not a read-me."""
    try:
        lines = read_lines(file)
    except InputError:
        return False
    return bool(lines) and any((annotations / f"{_stem(line.split()[0])}.xml").is_file() for line in lines[:20])


def _read(root: Path, folder: Path, parts: list[Path], split: Path | None, findings: Findings) -> Listing:
    annotations = _annotation_folder(folder)
    assert annotations is not None
    files = {path.stem: path for path in visible(annotations, "*.[xX][mM][lL]")}
    listed = dict.fromkeys(files) if split is None else _listed(split, files, findings)
    parsed = {stem: _parse(files[stem], findings) for stem in listed}
    names = {item.name for annotation in parsed.values() for item in annotation.items}
    read = {annotation.path for annotation in parsed.values()}
    # Folders that are splits share their classes; those that have split files are data sets of their own.
    for part in parts if split is None else [folder]:
        place = _annotation_folder(part)
        assert place is not None
        names |= _names_of(path for path in visible(place, "*.[xX][mM][lL]") if path not in read)
    ordered = tuple(sorted(names))
    images = ImagePlaces(root, _image_folders(folder, annotations), findings)
    entries = []
    for stem, annotation in parsed.items():
        path = images.by_stem(stem, annotation.filename, annotation.path)
        if path is not None and annotation.readable:
            entries.append(_entry(annotation, path, ordered))
    if split is None:
        _note_unannotated(_image_folders(folder, annotations), set(files), findings)
    return Listing(ordered, entries, str(split or annotations))


def _listed(split: Path, files: dict[str, Path], findings: Findings) -> dict[str, None]:
    """The stems that a split names, in order; of a line that is none, its first word."""
    lines = read_lines(split)
    if not lines:
        raise InputError(f"{split}: expected at least one image name, the file is empty")
    found: dict[str, None] = {}
    for line in lines:
        stem = next((form for form in (line, _stem(line), _stem(line.split()[0])) if form in files), None)
        if stem is None:
            folder = next(iter(files.values())).parent if files else split.parent
            first = f"{folder / _stem(line.split()[0])}.xml: annotation file not found, {split} names it"
            findings.fault("annotations not found", first)
        elif stem in found:
            findings.note("images named twice by a split, taken once", f"{split}: {line}")
        else:
            found[stem] = None
    return found


def _stem(name: str) -> str:
    """The name without folders and without the suffix of an image or annotation."""
    path = Path(name.replace("\\", "/"))
    return path.stem if is_image(path) or path.suffix.lower() == ".xml" else path.name


@dataclass(frozen=True)
class _Object:
    """corners: xmin, ymin, xmax, ymax as written."""

    name: str
    corners: tuple[float, ...]
    difficult: bool
    number: int


@dataclass(frozen=True)
class _Annotation:
    """size: (height, width), None where the file does not say. filename: of the image, as the file gives it."""

    path: Path
    size: tuple[int, int] | None
    filename: str
    items: list[_Object]
    readable: bool = True


def _parse(path: Path, findings: Findings) -> _Annotation:
    try:
        tree = _tree(path)
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (OSError, ValueError, InputError) as error:
        text = str(error) if isinstance(error, InputError) else f"{path}: expected whole numbers as size ({error})"
        findings.fault("annotations that cannot be read", text)
        return _Annotation(path, None, "", [], readable=False)
    items = []
    for number, item in enumerate(tree.findall("object"), start=1):
        try:
            items.append(_object(number, item, path, findings))
        except ValueError as error:
            findings.fault("objects that cannot be read", f"{path}: object {number}: {error}")
    _refuse_normalised(path, items, findings)
    # Some tools write 0 x 0 for a size they do not know; the image's own header then decides.
    return _Annotation(
        path, (height, width) if min(height, width) > 0 else None, tree.findtext("filename") or "", items
    )


def _tree(path: Path) -> ElementTree.Element:
    """The root of an annotation, without namespaces.

    Raises:
        InputError: for a file that is no XML, of an encoding that it does not name, or of another tool's kind.
    """
    content = path.read_bytes()
    named = _ENCODING.match(content)
    try:
        text = content.decode(named[1].decode()) if named and b"\0" not in content[:4] else decoded(content)
        tree = ElementTree.fromstring(_DECLARATION.sub("", text.lstrip("\ufeff"), count=1))
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{path}: expected UTF-8 or the encoding that the file names; save it as UTF-8") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: expected well-formed XML ({error})") from error
    for element in tree.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    if tree.tag.lower() != "annotation":
        raise InputError(f"{path}: expected PASCAL VOC's <annotation> as its outermost element, got <{tree.tag}>")
    return tree


def _object(number: int, item: ElementTree.Element, path: Path, findings: Findings) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError("expected a name, found none")
    box, polygon = item.find("bndbox"), item.find("polygon")
    if box is None and polygon is not None:
        corners = _bounds(polygon)
        findings.note("boxes taken as the bounds of a polygon", f"{path}: object {number}")
    elif box is None:
        shapes = ", ".join(child.tag for child in item if len(child) and child.tag != "part") or "no shape"
        raise ValueError(f"expected a bndbox, got {shapes}")
    else:
        try:
            corners = tuple(float(box.findtext(corner) or "") for corner in _CORNERS)
        except ValueError as error:
            raise ValueError(f"expected numbers as {', '.join(_CORNERS)} ({error})") from error
    try:
        difficult = float(item.findtext("difficult") or 0) != 0
    except ValueError as error:
        raise ValueError(f"expected 0 or 1 as difficult ({error})") from error
    return _Object(name, corners, difficult, number)


def _bounds(polygon: ElementTree.Element) -> tuple[float, ...]:
    """The corners around a polygon, written as x1, y1, x2, ... or as points of x and y."""
    coordinates: dict[str, list[float]] = {"x": [], "y": []}
    for element in polygon.iter():
        if element.tag[:1] in coordinates and element.tag[1:].isdigit() | (len(element.tag) == 1):
            coordinates[element.tag[:1]].append(float(element.text or ""))
    x, y = coordinates["x"], coordinates["y"]
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"expected a polygon of at least 2 points, got {len(x)} x and {len(y)} y")
    return min(x), min(y), max(x), max(y)


def _refuse_normalised(path: Path, items: list[_Object], findings: Findings) -> None:
    corners = [value for item in items for value in item.corners]
    if corners and all(0 <= value <= 1 for value in corners) and any(value % 1 for value in corners):
        shown = ", ".join(f"{value:g}" for value in items[0].corners)
        findings.fault(
            "files of normalised boxes", f"{path}: expected boxes in pixels, got {shown}: they look normalised to 0..1"
        )


def _names_of(paths: Iterator[Path]) -> set[str]:
    """Class names of annotations that no split asks for; what cannot be read there is not asked for either."""
    names = set()
    for path in paths:
        try:
            names |= {(item.findtext("name") or "").strip() for item in _tree(path).findall("object")}
        except (OSError, InputError):
            continue
    return names - {""}


def _entry(annotation: _Annotation, path: Path, names: tuple[str, ...]) -> Entry:
    items = annotation.items
    corners = np.array([item.corners for item in items], dtype=np.float64).reshape(-1, 4)
    as_written = (corners[:, :2] == corners[:, 2:]).any(1)[:, None]
    return Entry(
        path=path,
        boxes=corners - np.where(as_written, 0, (1, 1, 0, 0)),
        labels=np.array([names.index(item.name) for item in items], dtype=np.int64),
        source=annotation.path,
        places=[f"object {item.number} ({item.name})" for item in items],
        stated=annotation.size,
        ignored=np.array([item.difficult for item in items], dtype=bool),
    )


def _note_unannotated(folders: list[Path], stems: set[str], findings: Findings) -> None:
    for folder in folders:
        for path in visible(folder):
            if is_image(path) and path.stem not in stems:
                findings.note("images without an annotation file, left out", path)


def listing(pairs: Iterable[tuple[Path, Path]], findings: Findings) -> Listing:
    """The listing of annotation files and their images."""
    parsed = [(_parse(xml, findings), image) for xml, image in pairs]
    names = tuple(sorted({item.name for annotation, _ in parsed for item in annotation.items}))
    entries = [_entry(annotation, image, names) for annotation, image in parsed if annotation.readable]
    return Listing(names, entries, "VOCDetection")


def by_list(root: Path, file: Path) -> Reader:
    """The reader of a text file of names that lies anywhere, for the annotations of a folder."""
    parts = _parts(root)
    place = file if file.is_file() else root / file
    if not place.is_file() or len(parts) != 1:
        raise InputError(f"{file}: expected a file of image names of the annotations in {root}, found none")
    return partial(_read, root, parts[0], parts, place)
