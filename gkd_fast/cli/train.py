"""``gkd-fast train``: distil a detector and show what it brought."""

from __future__ import annotations

from collections.abc import Sequence

from gkd_fast.cli.first_stage import first_stage
from gkd_fast.cli.parsing import given_options, parse
from gkd_fast.config import Config, validate
from gkd_fast.runs.start import FIRST, check_files, run_start

_DESCRIPTION = """Train a teacher (or take a finished one), the student alone, and the distilled student at
equal steps; evaluate all three. Without options: the embedded scenes data, everything from random weights."""


def main(arguments: Sequence[str]) -> None:
    """Parse, run, print the table."""
    config = read(arguments)
    validate(config)
    check_files(config)
    from gkd_fast.runs.dry_run import describe, dry_run
    from gkd_fast.runs.summary import next_steps, summary_table
    from gkd_fast.runs.train import run_in_folder

    if config.run.dry_run:
        print(describe(config, dry_run(config)))
    elif summary := run_in_folder(config, given_options(arguments, Config)):
        print(summary_table(summary))
        print(next_steps(summary["folder"]))


def read(arguments: Sequence[str]) -> Config:
    """The settings that a command line asks for."""
    first, arguments = first_stage(arguments, *FIRST, "compile")
    return parse(arguments, "train", _DESCRIPTION, run_start(vars(first)))
