"""``gkd-fast study``: compare distillation methods over several seeds, with a control."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gkd_fast.cli.command import expanded, option, parse, starting_point
from gkd_fast.errors import InputError
from gkd_fast.study.study import StudyConfig, run_study, stored_study, study_folder, validate_study
from gkd_fast.study.tables import markdown

_DESCRIPTION = """Train a student by each method and seed, and as long without distillation, all with one teacher;
write means, 95 % confidence intervals and paired differences to study.json and study.md. All options of
gkd_fast.train hold for every student."""


def main(arguments: Sequence[str]) -> None:
    """Parse, run, print the tables."""
    arguments = expanded(arguments)
    for name, instead in {"seed": "seeds", "terms": "methods"}.items():
        if option(arguments, name) is not None:
            raise InputError(f"--{name}: expected --{instead}, which a study has in its place")
    stored = stored_study(arguments)
    config = starting_point(arguments, stored.config if stored else None)
    start = dataclasses.replace(stored or StudyConfig(), config=config)
    study = validate_study(parse(StudyConfig, arguments, "gkd_fast.study", _DESCRIPTION, start))
    print(markdown(run_study(study, study_folder(study))))
