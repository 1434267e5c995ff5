"""Compile and find the C++ operators: one library, named after a fingerprint of all that decides its content.

A library built at install, or by an earlier process, is used only if its fingerprint is the one expected here
and now; so an edited source, or a file system shared between machines with different processors, never meets
a stale binary. setup.py loads this file by itself: it imports nothing of the package, and torch only to
compile.
"""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

# For instrumented builds: flags added to those of compiler and linker.
EXTRA_FLAGS = tuple(os.environ.get("GKD_CXXFLAGS", "").split())
# -march=native is safe because the processor is part of the fingerprint: the binary never runs elsewhere.
# The target version is the oldest torch whose stable interface the sources use.
FLAGS = (
    "-O3",
    "-march=native",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *EXTRA_FLAGS,
)
PACKAGE = Path(__file__).resolve().parents[1]


def source_root() -> Path | None:
    """Folder of the C++ sources: inside an installed package, beside the package in a checkout."""
    for root in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (root / "common.h").is_file():
            return root
    return None


def fingerprint() -> str:
    """Name of the library that these sources give on this processor."""
    return digest("cpu", *FLAGS, sys.platform, _processor())


def digest(folder: str, *settings: str) -> str:
    """Name for what the sources of one folder, and what they share, give with these settings."""
    found = hashlib.sha256(" ".join(settings).encode())
    root = source_root()
    if root is not None:
        for source in (root / "common.h", *sorted((root / folder).iterdir())):
            found.update(source.relative_to(root).as_posix().encode() + source.read_bytes())
    return found.hexdigest()[:16]


def built_library() -> Path | None:
    """A library made earlier for exactly these sources and this processor, if there is one."""
    name = fingerprint()
    candidates = (PACKAGE / f"_C.{name}.so", cache_directory(name) / f"gkd_fast_{name}.so")
    return next((path for path in candidates if path.is_file()), None)


def cache_directory(name: str) -> Path:
    """Where the library of this fingerprint is kept between processes."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gkd_fast" / name


def compile_library(directory: Path) -> Path:
    """Compile the CPU operators with ninja into `directory`, load the library and return its path."""
    return compile_folder("cpu", f"gkd_fast_{fingerprint()}", directory, extra_cflags=list(FLAGS))


def compile_folder(folder: str, name: str, directory: Path, **options: list[str]) -> Path:
    """Compile the sources of one folder with ninja, load the library and return its path in `directory`.

    It is built in a folder of its own and moved to its place when it is whole: whatever a build that was killed leaves
    behind, no later one meets it. Of several processes one builds, the others wait for it.
    """
    root = source_root()
    if root is None:
        raise FileNotFoundError(f"no C++ sources beside or inside {PACKAGE}")
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / f"{name}.so"
    with _alone(directory / "building"):
        if library.is_file():
            import torch

            torch.ops.load_library(library)
            return library
        with tempfile.TemporaryDirectory(dir=directory, prefix="build-") as private:
            _compile(root / folder, name, private, options)
            made = Path(private, library.name)
            with made.open("rb") as handle:
                os.fsync(handle.fileno())  # else a power cut could leave the name without the content
            os.replace(made, library)
    return library


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Within, no other process is; a process that is killed there is no longer."""
    with file.open("w") as handle:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.lockf(handle, fcntl.LOCK_EX)
        yield


def _compile(sources: Path, name: str, directory: str, options: dict[str, Any]) -> None:
    import ninja
    from torch.utils import cpp_extension

    # The ninja that pip installed is on no PATH when python is called by its own path.
    search_path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, search_path))
    try:
        cpp_extension.load(
            name,
            sources=[str(path) for path in sorted(sources.iterdir()) if path.suffix in (".cpp", ".cu")],
            extra_ldflags=list(EXTRA_FLAGS),
            build_directory=directory,
            is_python_module=False,
            **options,
        )
    finally:
        os.environ["PATH"] = search_path


def _processor() -> str:
    """Everything that -march=native can look at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    keys = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(keys)}))
