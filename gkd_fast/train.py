"""``python -m gkd_fast.train``: distil a detector and show what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_fast import parallel
from gkd_fast.cli.command import expanded, parse_config, run_command
from gkd_fast.config_checks import validate
from gkd_fast.runs.dry_run import describe, dry_run
from gkd_fast.runs.folders import run_folder, stored_config
from gkd_fast.runs.job import run
from gkd_fast.runs.summary import summary_table
from gkd_fast.training.distributed import check, process_group
from gkd_fast.training.precision import resolve_device

_DESCRIPTION = """Train a teacher (or take a finished one), the student alone, and the distilled student at
equal steps; evaluate all three. Without options: the embedded scenes data, everything from random weights."""


def main(arguments: Sequence[str]) -> None:
    """Parse, run, print the table."""
    arguments = expanded(arguments)
    start = stored_config(arguments)
    config = parse_config(arguments, "gkd_fast.train", _DESCRIPTION, start)
    validate(config)
    if config.run.dry_run:
        print(describe(config, dry_run(config)))
        return
    with process_group(resolve_device(config.run.device)):
        check(config)
        folder = parallel.from_main(run_folder(config) if parallel.is_main() else Path())
        summary: dict[str, Any] = run(config, folder)
        if parallel.is_main():
            print(summary_table(summary))


if __name__ == "__main__":
    run_command(main)
