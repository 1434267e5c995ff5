"""Text files as annotation tools write them."""

from __future__ import annotations

import codecs
from pathlib import Path

from gkd_fast.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        InputError: the file is missing or in another encoding.
    """
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: expected a text file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, got another encoding; save the file as UTF-8") from error


def decoded(content: bytes) -> str:
    """UnicodeDecodeError where the bytes are no text in an encoding that shows."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None:
        # Without a mark, UTF-16 of Latin text shows by its zero bytes.
        zeros = content[:200].count(0)
        encoding = "utf-8" if not zeros else "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    return content.decode(encoding)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without the space around them."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
