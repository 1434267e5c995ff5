"""``gkd-fast COMMAND``: the list of commands, and the way to each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gkd_fast import __version__
from gkd_fast.cli.waiting import limit_spinning

COMMANDS = {
    "inspect": "is your data read right? its facts, and a page with charts and drawn examples",
    "train": "distil a detector and show what it brought",
    "study": "compare distillation methods over several seeds, with a control",
    "evaluate": "AP of a trained detector on a data set",
    "predict": "find objects in images with a trained detector",
    "export": "a trained detector as torchvision weights, torch.export or ONNX",
    "convert": "a detector of mmdet or detectron2 as a teacher",
    "report": "one page about finished runs",
    "push-to-hub": "a detector as safetensors with a model card, onto a hub if asked",
}


def main() -> None:
    """The console script."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        print(f"gkd-fast {__version__}")
    elif name not in COMMANDS:
        print(f"error: expected one of {', '.join(COMMANDS)}; got {name!r}", file=sys.stderr)
        sys.exit(2)
    else:
        run(name, rest)


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code.

    Args:
        name: key of `COMMANDS`.
        arguments: behind the name; None: this process's.
    """
    limit_spinning(os.environ)
    from gkd_fast.runs.exits import run_command  # takes torch along, which the list of commands can do without

    run_command(import_module(f"gkd_fast.cli.{name.replace('-', '_')}").main, arguments)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(
        (
            "usage: gkd-fast COMMAND [OPTIONS]",
            "",
            "Distil a large object detector into a small one by global knowledge.",
            "",
            *lines,
            "",
            "gkd-fast COMMAND --help shows the options of a command; gkd-fast --version the version.",
        )
    )
