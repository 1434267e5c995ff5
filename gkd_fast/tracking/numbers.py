"""What trackers with runs of their own share: the settings as one level of names, and which run it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gkd_fast.files import write_json


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by names such as ``optim.epochs``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{name}.{key}" if key else name: own for key, own in inner.items()}
    return found


def number_of_run(tracker: str, folder: Path, create: Callable[[], str]) -> str:
    """The tracker's number of the run in a folder, which ``tracking.json`` keeps for when it goes on."""
    file = folder / "tracking.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if tracker not in known:
        write_json(file, {**known, tracker: create()})
        known = json.loads(file.read_text())
    return known[tracker]
