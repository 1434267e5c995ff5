"""``gkd-fast study``: compare distillation methods over several seeds, with a control."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gkd_fast.cli.first_stage import first_stage
from gkd_fast.cli.parsing import parse
from gkd_fast.errors import InputError
from gkd_fast.presets import starting_point
from gkd_fast.study.study import INSTEAD, StudyConfig, run_study, stored_study, study, study_folder, validate_study
from gkd_fast.study.tables import markdown

_DESCRIPTION = """Train a student by each method and seed, and as long without distillation, all with one teacher;
write means, 95 % confidence intervals and paired differences to study.json and study.md. All options of
gkd-fast train hold for every student."""

__all__ = ["main", "study"]


def main(arguments: Sequence[str]) -> None:
    """Parse, run, print the tables."""
    first, arguments = first_stage(arguments, "resume", "output", "preset", "data", "compile", *INSTEAD)
    for name, instead in INSTEAD.items():
        if getattr(first, name) is not None:
            raise InputError(f"--{name}: expected --{instead}, which a study has in its place")
    stored = stored_study(first.resume or "off", Path(first.output) if first.output else None)
    config = starting_point(first.preset, first.data, stored.config if stored else None)
    start = dataclasses.replace(stored or StudyConfig(), config=config)
    settings = validate_study(parse(arguments, "study", _DESCRIPTION, start, without=INSTEAD))
    print(markdown(run_study(settings, study_folder(settings))))
