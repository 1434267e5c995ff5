"""Every image decoded once before training, and what was found remembered for the next start."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from gkd_fast import parallel
from gkd_fast.data.images import ImageFacts, look_at
from gkd_fast.errors import RunError
from gkd_fast.files import replacing

_VERSION = 1
Key = tuple[int, int]


def look_at_images(paths: Sequence[Path]) -> list[ImageFacts]:
    """What each image file is; decoded on all cores, unless it was before and is unchanged in size and time.

    Under torchrun the first process looks, the others read what it remembers.
    """
    if not parallel.is_main():
        parallel.barrier()
    known = {folder: _Memory(folder) for folder in {path.parent for path in paths}}
    keys = [_key(path) for path in paths]
    facts = [known[path.parent].recall(path, key) for path, key in zip(paths, keys, strict=True)]
    unknown = [index for index, found in enumerate(facts) if found is None]
    if unknown:
        with warnings.catch_warnings(), ThreadPoolExecutor(parallel.processor_cores()) as pool:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            seen = pool.map(look_at, (paths[index] for index in unknown))
            shown = tqdm(seen, "images", len(unknown), delay=1, disable=not parallel.is_main(), leave=False)
            for index, found in zip(unknown, shown, strict=True):
                facts[index] = found
                known[paths[index].parent].keep(paths[index], keys[index], found)
    if parallel.is_main():
        for memory in known.values():
            memory.write()
        parallel.barrier()
    return [found for found in facts if found is not None]


def _key(path: Path) -> Key | None:
    """Size in bytes and time of the last change; None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def cache_folder() -> Path:
    """Where what is known of images is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gkd_fast"


class _Memory:
    """What is known of the images of one folder, in a file of the user's cache folder."""

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:20]
        self._file = cache_folder() / f"images-{name}.json"
        self._new = False
        try:
            content = json.loads(self._file.read_bytes())
            self._known = content["images"] if content["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            self._known = {}

    def recall(self, path: Path, key: Key | None) -> ImageFacts | None:
        found = self._known.get(path.name) if key else None
        if not found or tuple(found[0]) != key:
            return None
        size, *rest = found[1]
        return ImageFacts(tuple(size), *rest)

    def keep(self, path: Path, key: Key | None, facts: ImageFacts) -> None:
        if key:
            self._known[path.name] = [key, astuple(facts)]
            self._new = True

    def write(self) -> None:
        if not self._new:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file) as temporary:
                temporary.write_text(json.dumps({"version": _VERSION, "images": self._known}), encoding="utf-8")
        except (OSError, RunError) as error:
            print(f"images: not remembered for the next start ({error})", file=sys.stderr)
