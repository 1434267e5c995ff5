"""What the command lines share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Answers a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def is_writable(path: Path) -> bool:
    """Whether a file can be written there."""
    return os.access(path if path.exists() else path.parent, os.W_OK) and not path.is_dir()
