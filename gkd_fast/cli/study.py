"""``gkd-fast study``: compare distillation methods over several seeds, with a control."""

from __future__ import annotations

from collections.abc import Sequence

from gkd_fast.cli.first_stage import first_stage
from gkd_fast.cli.parsing import given_options, parse
from gkd_fast.config import Config
from gkd_fast.errors import InputError
from gkd_fast.runs.train import FIRST
from gkd_fast.study.study import INSTEAD, run_study, settled, study, study_folder, study_start, validate_study
from gkd_fast.study.tables import markdown

_DESCRIPTION = """Train a student by each method and seed, and as long without distillation, all with one teacher;
write means, 95 % confidence intervals and paired differences to study.json and study.md. All options of
gkd-fast train hold for every student."""

__all__ = ["main", "study"]


def main(arguments: Sequence[str]) -> None:
    """Parse, run, print the tables."""
    first, arguments = first_stage(arguments, *FIRST, "compile", *INSTEAD)
    for name, instead in INSTEAD.items():
        if getattr(first, name) is not None:
            raise InputError(f"--{name}: expected --{instead}, which a study has in its place")
    start = study_start(**{name: getattr(first, name) for name in FIRST})
    settings = validate_study(parse(arguments, "study", _DESCRIPTION, start, without=INSTEAD))
    settings, images = settled(settings, given_options(arguments, Config))
    print(markdown(run_study(settings, study_folder(settings), images)))
