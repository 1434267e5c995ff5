"""Settings of a study, and where they start."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from gkd_fast.config import Config, from_dict, replace, validate
from gkd_fast.errors import InputError
from gkd_fast.options import MAIN, check_options
from gkd_fast.presets import starting_point
from gkd_fast.ranges import POSITIVE
from gkd_fast.runs.folders import RUNS, holding
from gkd_fast.runs.start import resumed
from gkd_fast.study.methods import parse_methods

FILE = "study.json"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study and the settings that its runs share."""

    methods: Annotated[tuple[str, ...], MAIN] = ("gkd",)
    """Methods to compare, each NAME[@FACTOR] joined by "+": names as for --method of gkd-fast train; FACTOR multiplies
    all weights of its term; "recommended" is gkd+fgfi+robust;
    "robust" among the names sets --robust-masks. The student without a teacher is always there."""
    seeds: Annotated[tuple[int, ...], MAIN] = (0, 1, 2)
    """Seeds of the students; the first one is the teacher's, too."""
    jobs: Annotated[int, POSITIVE, MAIN] = 1
    """Students trained at once, each in a process of its own; they share the processor's cores."""
    config: Config = field(default_factory=Config)


# What a study has in the place of options of a single run.
INSTEAD = {"seed": "seeds", "terms": "methods", "method": "methods"}


def study_start(first: Mapping[str, Any]) -> StudyConfig:
    """The settings that the options of a study change; `first`: those of FIRST, None for one that is not given."""
    stored = stored_study(*resumed(first))
    config = starting_point(first, stored.config if stored else None)
    return dataclasses.replace(stored or StudyConfig(), config=config)


def validate_study(study: StudyConfig) -> StudyConfig:
    """Check a study's settings and bring methods and seed into their final form.

    Raises:
        InputError: naming the option, what was expected and what was given.
    """
    check_options(study)
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise InputError(
            f"--seeds: expected different numbers from 0 on, got {' '.join(map(str, study.seeds)) or 'none'}"
        )
    if study.config.run.dry_run:
        raise InputError("--dry-run: expected gkd-fast train; a study has no dry run")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("gkd-fast study: expected to be started without torchrun; --jobs trains students side by side")
    methods = parse_methods(study.methods)
    for method in methods:
        validate(dataclasses.replace(study.config, distill=method.applied(study.config.distill)))
    config = replace(study.config, "run", seed=study.seeds[0])
    return dataclasses.replace(study, methods=tuple(method.text for method in methods), config=config)


def stored_study(resume: str, output: Path | None) -> StudyConfig | None:
    """The study that ``--resume`` goes on with; None for a new one.

    Args:
        resume: "on", "off", or "auto", which allows a new study.
        output: folder of the study; None: the newest one in runs/.

    Raises:
        InputError: if there is no such study, and `resume` does not allow a new one.
    """
    if resume == "off":
        return None
    folder = holding(FILE, output)
    if folder is None:
        if resume == "auto":
            return None
        raise InputError(f"--resume: expected a study in {output or f'{RUNS}/ or --output'}, found none")
    stored = read_study(folder / FILE)
    return StudyConfig(
        methods=tuple(stored["methods"]), seeds=tuple(stored["seeds"]), config=from_dict(stored["config"])
    )


def read_study(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        return {key: content[key] for key in ("methods", "seeds", "config")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: expected the settings of a study; {error}") from error
