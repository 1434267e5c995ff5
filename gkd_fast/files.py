"""Files that are whole or not there, and one clear line where a run cannot go on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint.api import CheckpointException

from gkd_fast import parallel
from gkd_fast.errors import InputError, RunError

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

_FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "quota used up", errno.EFBIG: "file size limit reached"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name; what was written there takes the place of `path`, at once and on the disk.

    Raises:
        RunError: if it cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; of the processes that train together, the main one does."""
    if not parallel.is_main():
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # Windows has no such call for folders, and for files only where they may be written
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what the file system refuses is a `RunError` that names `path`."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if not _is_refusal(cause):
            raise cause from error
        raise _refused(path, cause) from error
    except (OSError, RuntimeError) as error:
        if not _is_refusal(error):
            raise
        raise _refused(path, error) from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within, no other run can claim the folder, which is made here; the claim ends with the process at the latest.

    Raises:
        RunError: if another run has claimed it.
    """
    if not parallel.is_main():
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            raise RunError(f"{folder}: another process trains there; wait for its end or stop it") from error
        except OSError:  # a file system without locks
            pass
        yield


def _lock(file: IO[str]) -> None:
    if fcntl is not None:
        # Unlike flock's, this lock is not inherited by loader processes, which may outlive a killed run.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    windows: Any = msvcrt
    windows.locking(file.fileno(), windows.LK_NBLCK, 1)


def _is_refusal(error: BaseException) -> bool:
    # torch's writer of archives reports a failed write as a RuntimeError of its own.
    return isinstance(error, OSError) or "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)


def _refused(path: Path, error: BaseException) -> RunError:
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    reason = _FULL.get(number or 0, str(error))
    return RunError(f"{path}: could not be written: {reason}; make room, then --resume goes on")


@contextmanager
def loading() -> Iterator[None]:
    """Within, what a loader process died of, or could not read, is one line.

    Raises:
        InputError: as the loader process raised it, for a file that cannot be read.
        RunError: for a loader process that died.
    """
    try:
        yield
    except InputError as error:
        name = f"{InputError.__module__}.{InputError.__qualname__}: "
        before, found, message = str(error).partition(name)
        if not found or "DataLoader worker" not in before:
            raise
        raise InputError(message.strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            "a loader process died (the system kills them where memory runs out); fewer --workers or no --cache need "
            "less memory, --resume goes on from the last checkpoint"
        ) from error
