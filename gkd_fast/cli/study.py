"""``gkd-fast study``: compare distillation methods over several seeds, with a control."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from gkd_fast.cli.first_stage import first_stage
from gkd_fast.cli.parsing import given_options, parse
from gkd_fast.config import Config
from gkd_fast.errors import InputError
from gkd_fast.runs.start import FIRST, check_files
from gkd_fast.study.settings import INSTEAD, StudyConfig, study_start, validate_study

_DESCRIPTION = """Train a student by each method and seed, and as long without distillation, all with one teacher;
write means, 95 % confidence intervals and paired differences to study.json and study.md. All options of
gkd-fast train hold for every student. --set "NAME OPTIONS", once for each of several data sets, runs a study of each
in OUTPUT/NAME, with OPTIONS in addition to the others, and ends in one table of all sets (sets.md)."""


def main(arguments: Sequence[str]) -> None:
    """Parse, run, print the tables."""
    sets, arguments = _sets(arguments)
    if sets:
        output = _output(arguments)
        _run_sets({name: [*arguments, *own, f"--output={output / name}"] for name, own in sets.items()}, output)
        return
    settings = _settings(arguments)
    from gkd_fast.study.study import run_study, settled, study_folder
    from gkd_fast.study.tables import markdown

    settings, images = settled(settings, given_options(arguments, Config))
    print(markdown(run_study(settings, study_folder(settings), images)))


def _run_sets(sets: dict[str, list[str]], output: Path) -> None:
    checked = {name: _settings(arguments) for name, arguments in sets.items()}
    from gkd_fast.study.sets import markdown, run_sets
    from gkd_fast.study.study import settled

    studies = {name: settled(own, given_options(sets[name], Config)) for name, own in checked.items()}
    print(markdown(run_sets(studies, output)))


def _settings(arguments: Sequence[str]) -> StudyConfig:
    first, arguments = first_stage(arguments, *FIRST, "compile", *INSTEAD)
    for name, instead in INSTEAD.items():
        if getattr(first, name) is not None:
            raise InputError(f"--{name}: expected --{instead}, which a study has in its place")
    start = study_start(vars(first))
    study = validate_study(parse(arguments, "study", _DESCRIPTION, start, without=INSTEAD))
    check_files(study.config)
    return study


def _sets(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The options of each data set by its name, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--set", action="append", default=[])
    try:
        found, rest = parser.parse_known_args(list(arguments))
        words = [shlex.split(text) for text in found.set]
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(f'--set: expected "NAME OPTIONS"; {error}') from error
    sets = {name: own for name, *own in filter(None, words)}
    if len(sets) < len(found.set):
        raise InputError(f"--set: expected a name of its own for every data set, got {' | '.join(found.set)}")
    return sets, rest


def _output(arguments: Sequence[str]) -> Path:
    first, _ = first_stage(arguments, "output")
    if first.output is None:
        raise InputError("--output: expected the folder of all sets' studies beside --set, got nothing")
    return Path(first.output)
