"""The methods' names, and what each needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gkd_fast.errors import InputError

NAMES = ("gkd", "fgfi", "defeat", "fbkd", "rkd", "cwd", "pkd", "fgd", "mgd", "crosskd")
MASKED = ("fgfi", "defeat", "fgd")

NEEDED = {"fgfi": ("anchors",), "crosskd": ("crossed heads",)}
"""What a method needs beside maps and boxes."""
NEEDS = {
    "anchors": "the student's anchors: Distiller(anchors=...)",
    "crossed heads": "the heads of two torchvision RetinaNets: gkd_fast.train --detector retinanet",
}
"""Where that comes from."""


def check_needs(names: Sequence[str], offered: Collection[str], option: str = "method") -> None:
    """Check that methods get what they need beside maps and boxes.

    Args:
        names: of `NAMES`.
        offered: keys of `NEEDS` that are there.
        option: what the names were given as, for the message.

    Raises:
        InputError: for the first method that lacks something.
    """
    for name in names:
        for need in NEEDED.get(name, ()):
            if need not in offered:
                raise InputError(f"{option}: {name} needs {NEEDS[need]}")
