"""YOLO: a text file for each image, a line for each object: class, centre x, centre y, width, height, in 0..1.

Lines of more numbers are polygons (x, y, x, y, ...), whose bounds are the box. An image without a text file has no
objects. A corner that its digits cannot tell from a whole pixel is that pixel, so that boxes drawn in pixels come back
as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gkd_fast.data.findings import Findings
from gkd_fast.data.layout import Layout, Reader
from gkd_fast.data.listing import Entry, Listing
from gkd_fast.data.places import subfolders, visible, walk
from gkd_fast.data.suffixes import is_image
from gkd_fast.data.text import read_lines, read_text
from gkd_fast.errors import InputError

_ROLES = ("train", "val", "valid", "test")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "classes.names", "labels.txt")
# Tools round to five or six digits; a value further outside of 0..1 was not meant as a fraction.
_MOST = 1.01


def find(root: Path) -> Layout | None:
    """The YOLO layout of a folder: a ``data.yaml``, or ``images`` and ``labels``, or text files beside the images."""
    files = (
        [root]
        if root.is_file() and root.suffix in (".yaml", ".yml")
        else [*visible(root, "*.yaml"), *visible(root, "*.yml")]
    )
    for file in files:
        content = _yaml(file)
        if isinstance(content, dict) and "names" in content and any(role in content for role in _ROLES):
            return _described(file, content)
    return _by_folders(root) if root.is_dir() else None


def _yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{file}: expected YAML ({' '.join(str(error).split())})") from error


def _described(file: Path, content: Mapping[str, Any]) -> Layout:
    names = _names(file, content)
    splits: dict[str, Reader] = {}
    for role in _ROLES:
        if content.get(role):
            given = content[role] if isinstance(content[role], list) else [content[role]]
            splits[role] = partial(_read_described, file, content.get("path"), given, names)
    if not splits:
        raise InputError(f"{file}: expected train and val, got neither")
    return Layout("yolo", f"YOLO ({file.name})", file.parent, splits)


def _read_described(
    file: Path, base: str | None, given: Sequence[str], names: tuple[str, ...], findings: Findings
) -> Listing:
    return _read([_resolved(file, base, str(place)) for place in given], names, str(file), findings)


def _names(file: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by index, of a list or of a mapping of indices to names."""
    names = content["names"]
    if isinstance(names, dict):
        try:
            by_index = {int(key): str(name) for key, name in names.items()}
        except ValueError as error:
            raise InputError(f"{file}: names: expected whole numbers as keys ({error})") from error
        if sorted(by_index) != list(range(len(by_index))):
            raise InputError(f"{file}: names: expected the keys 0 to {len(names) - 1}, got {sorted(by_index)}")
        names = [by_index[index] for index in range(len(by_index))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: names: expected a list of class names, got {names!r}")
    names = tuple(str(name) for name in names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file}: names: expected each name once, got {twice!r} twice")
    if content.get("nc") not in (None, len(names)):
        raise InputError(f"{file}: nc: expected the number of names, {len(names)}, got {content['nc']!r}")
    return names


def _resolved(file: Path, base: str | None, place: str) -> Path:
    """The folder or list that a data.yaml means: paths in it are often those of another machine or folder."""
    below = place.replace("\\", "/")
    while below.startswith("../"):
        below = below[3:]
    candidates = [Path(base, place)] if base else []
    candidates += [file.parent / (base or "") / place, file.parent / place, file.parent / below]
    ends = [Path(*Path(below).parts[-length:]) for length in (3, 2, 1)]
    candidates += [file.parent / end for end in ends if end.name != "images" or len(end.parts) > 1]
    for path in candidates:
        if path.exists():
            return path
    raise InputError(f"{file}: {place}: expected a folder of images or a list of them, found nothing there")


def _by_folders(root: Path) -> Layout | None:
    """images/SPLIT and labels/SPLIT, SPLIT/images and SPLIT/labels, or images and text files side by side."""
    images = next((path for path in subfolders(root) if path.name.lower() == "images"), None)
    inner = [folder for folder in subfolders(images) if _holds_images(folder)] if images else []
    own = [path for path in subfolders(root) if (path / "images").is_dir() or (path != images and _side_by_side(path))]
    if inner:
        found = {folder.name: folder for folder in inner}
    elif images and _has_labels(images):
        found = {"all": images}
    elif own:
        found = {path.name: path / "images" if (path / "images").is_dir() else path for path in own}
    elif _side_by_side(root):
        found = {"all": root}
    else:
        return None
    found = {name: folder for name, folder in found.items() if _has_labels(folder)}
    if not found:
        return None
    names = _listed_names(root, [*found.values()])
    splits = {name: partial(_read, [folder], names, str(folder)) for name, folder in found.items()}
    return Layout("yolo", "YOLO (images and labels)", root, splits)


def _holds_images(folder: Path) -> bool:
    return any(is_image(path) for path in visible(folder))


def _side_by_side(folder: Path) -> bool:
    return _has_labels(folder) and not (folder / "images").is_dir()


def _has_labels(folder: Path) -> bool:
    """Whether the text file of an image in the folder is one of boxes."""
    for path in visible(folder):
        label = _label_file(path)
        if is_image(path) and label.is_file():
            lines = read_lines(label)
            if not lines or (len(lines[0].split()) >= 5 and all(_is_number(word) for word in lines[0].split())):
                return True
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _listed_names(root: Path, folders: Sequence[Path]) -> tuple[str, ...] | None:
    """The class names of a text file, a name a line; None where there is none."""
    for place in (root, root / "labels", *folders, *(_label_file(folder / "x.jpg").parent for folder in folders)):
        for name in _NAME_FILES:
            if (file := place / name).is_file():
                names = tuple(read_lines(file))
                if len(set(names)) < len(names):
                    raise InputError(f"{file}: expected each class name once, got {', '.join(names)}")
                return names
    return None


def _label_file(image: Path) -> Path:
    """labels instead of the last folder images on the way to an image, else beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            parts[index] = "labels"
            changed = Path(*parts).with_suffix(".txt")
            if changed.parent.is_dir():
                return changed
            break
    return image.with_suffix(".txt")


def _read(places: Sequence[Path], names: tuple[str, ...] | None, source: str, findings: Findings) -> Listing:
    images = [path for place in places for path in _images(place, findings)]
    read = [(path, _label_file(path)) for path in dict.fromkeys(images)]
    parsed = [(path, label, _lines(label, findings)) for path, label in read]
    if names is None:
        most = max((int(float(row[0])) for _, _, rows in parsed for _, row in rows), default=-1)
        names = tuple(f"class {index}" for index in range(most + 1))
        findings.note("class names missing (classes.txt, data.yaml), made of their numbers", source)
    entries = [_entry(path, label, rows, names, findings) for path, label, rows in parsed]
    _note_orphans(read, findings)
    return Listing(names, entries, source)


def _images(place: Path, findings: Findings) -> list[Path]:
    """The images of a folder, or of a list of their paths."""
    if place.is_dir():
        return [path for path in walk(place) if is_image(path)]
    found = []
    for line in read_lines(place):
        name = line.replace("\\", "/")
        candidates = [Path(name), place.parent / name, place.parent.parent / name, place.parent / Path(name).name]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            findings.fault("images not found", f"{place}: {line}: image file not found")
        else:
            found.append(path)
    return found


def _lines(label: Path, findings: Findings) -> list[tuple[int, list[str]]]:
    """Number and words of the lines that can be read."""
    if not label.is_file():
        return []
    rows = []
    for number, line in enumerate(read_text(label).splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        wrong = _wrong(words)
        if wrong:
            findings.fault("lines that are no boxes", f"{label}: line {number}: {wrong}")
        else:
            rows.append((number, words))
    return rows


def _wrong(words: Sequence[str]) -> str:
    """What is wrong with a line, or ""."""
    if not all(_is_number(word) for word in words):
        return f"expected numbers, got {' '.join(words)[:60]!r}"
    if len(words) < 5 or len(words) % 2 == 0:
        what = "class, x, y, width, height or a polygon of x and y"
        hint = "; a sixth number is a detection's score, no annotation" if len(words) == 6 else ""
        return f"expected {what}, got {len(words)} numbers{hint}"
    if float(words[0]) != int(float(words[0])) or float(words[0]) < 0:
        return f"expected a whole number as class, got {words[0]}"
    values = [float(word) for word in words[1:]]
    if not all(abs(value) <= _MOST for value in values):
        return f"expected fractions of 0 to 1, got {' '.join(words[1:5])}: they look like pixels, not normalised"
    return ""


def _entry(
    path: Path, label: Path, rows: list[tuple[int, list[str]]], names: Sequence[str], findings: Findings
) -> Entry:
    kept = []
    for number, words in rows:
        index = int(float(words[0]))
        if index >= len(names):
            text = f"{label}: line {number}: expected a class of 0 to {len(names) - 1}, got {index}"
            findings.fault("boxes of unknown classes", text)
        else:
            kept.append((number, index, words[1:]))
    corners = np.array([_corners(words) for _, _, words in kept], dtype=np.float64).reshape(-1, 4)
    digits = np.array([[_uncertainty(words)] * 4 for _, _, words in kept], dtype=np.float64).reshape(-1, 4)
    polygons = [number for number, _, words in kept if len(words) > 4]
    if polygons:
        findings.note(
            "boxes taken as the bounds of a polygon", f"{label}: line {polygons[0]}", len(polygons), image=path
        )
    return Entry(
        path=path,
        boxes=corners,
        labels=np.array([index for _, index, _ in kept], dtype=np.int64),
        source=label,
        places=[f"line {number}" for number, _, _ in kept],
        relative=digits,
    )


def _corners(words: Sequence[str]) -> list[float]:
    values = [float(word) for word in words]
    if len(values) > 4:
        x, y = values[::2], values[1::2]
        return [min(x), min(y), max(x), max(y)]
    across, down, width, height = values
    return [across - width / 2, down - height / 2, across + width / 2, down + height / 2]


def _uncertainty(words: Sequence[str]) -> float:
    """What the written digits leave open of a corner, which is a centre and half a side: 1.5 halves of the last digit.
    Fewer than five digits are no rounding: zeros at the end are often not written."""
    digits = max(len(word.partition(".")[2]) if "e" not in word.lower() else 17 for word in words)
    return 0.75 * 10.0 ** -max(digits, 5)


def _note_orphans(read: Sequence[tuple[Path, Path]], findings: Findings) -> None:
    """Counts images without a text file, and text files without an image."""
    for path, label in read:
        if not label.is_file():
            findings.note("images without a label file, taken as without objects", path)
    known = {label for _, label in read}
    for folder in dict.fromkeys(label.parent for label in known):
        for file in visible(folder, "*.txt"):
            if file not in known and file.name not in (*_NAME_FILES, "README.txt") and "README" not in file.name:
                findings.note("label files without an image, left out", file)
