"""Where the images lie that annotations name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from gkd_fast.data.findings import Findings
from gkd_fast.data.suffixes import is_image


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, sorted folder by folder; hidden files and folders are not looked at."""
    seen = {root.resolve()}
    for folder, inner, names in os.walk(root, followlinks=True):
        places = {name: Path(folder, name).resolve() for name in sorted(inner) if not name.startswith(".")}
        inner[:] = [name for name, place in places.items() if place not in seen]
        seen |= set(places.values())
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds by a pattern, sorted, without hidden files; nothing where there is no such folder."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(".")) if folder.is_dir() else []


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    return [path for path in visible(folder) if path.is_dir()]


class ImagePlaces:
    """Finds image files by the names that annotations have for them.

    Args:
        root: of the data set; the last place to look is everything below it.
        folders: where the images should be, in order.
        findings: takes names whose file lies elsewhere, or nowhere.
    """

    def __init__(self, root: Path, folders: Iterable[Path], findings: Findings) -> None:
        self.root, self.folders, self.findings = root, list(dict.fromkeys(folders)), findings

    def by_name(self, name: str, source: Path | str) -> Path | None:
        """The file of a name such as ``a.jpg``, ``train/a.jpg`` or ``train\\a.jpg``; None is a fault, noted here."""
        tried = [Path(form) for form in dict.fromkeys((name, name.replace("\\", "/")))]
        tried += [Path(form.name) for form in tried if form.name]
        for form in tried:
            for folder in (*self.folders, self.root):
                if (path := folder / form).is_file():
                    return path
        return self._elsewhere(self._by_file_name.get(tried[-1].name.lower(), ()), name, source)

    def by_stem(self, stem: str, named: str, source: Path) -> Path | None:
        """The image that shares its stem with an annotation; of several, or where there is none, the one that this
        names. None is a fault, noted here."""
        for folder in self.folders:
            found = self._stems(folder).get(stem, ())
            if found:
                chosen = next((path for path in found if path.name == Path(named.replace("\\", "/")).name), found[0])
                if len(found) > 1:
                    self.findings.note("annotations with several images of their name, of which one is taken", chosen)
                return chosen
        if named:
            other = Path(named.replace("\\", "/")).name
            path = next((folder / other for folder in self.folders if (folder / other).is_file()), None)
            if path is not None:
                return path
        return self._elsewhere(self._by_stem.get(stem.lower(), ()), stem, source)

    def _elsewhere(self, found: Sequence[Path], name: str, source: Path | str) -> Path | None:
        if len(found) == 1:
            self.findings.note("images found in another folder or spelling", found[0])
            return found[0]
        many = f"{len(found)} files of that name below {self.root}" if found else "image file not found"
        self.findings.fault("images not found", f"{self.folders[0] / name}: {many}, {source} names it")
        return None

    def _stems(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._folder_stems:
            self._folder_stems[folder] = _grouped((p for p in visible(folder) if is_image(p)), lambda path: path.stem)
        return self._folder_stems[folder]

    @cached_property
    def _folder_stems(self) -> dict[Path, dict[str, list[Path]]]:
        return {}

    @cached_property
    def _all(self) -> list[Path]:
        return [path for path in walk(self.root) if is_image(path)]

    @cached_property
    def _by_file_name(self) -> dict[str, list[Path]]:
        return _grouped(self._all, lambda path: path.name.lower())

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped(self._all, lambda path: path.stem.lower())


def _grouped(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return dict(groups)
