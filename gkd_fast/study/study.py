"""A study: methods x seeds on one data set with one teacher, and always the student trained as long without it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from gkd_fast.config import SECTIONS, Config, from_dict, replace, to_dict, validate
from gkd_fast.errors import InputError, RunError
from gkd_fast.files import loading, write_json
from gkd_fast.options import MAIN, changed, check_options
from gkd_fast.presets import starting_point
from gkd_fast.ranges import POSITIVE
from gkd_fast.runs.data import Images
from gkd_fast.runs.folders import RUNS, free_folder, holding, stored_folder
from gkd_fast.runs.job import Job
from gkd_fast.runs.settle import settle
from gkd_fast.runs.train import FIRST, resumed
from gkd_fast.study.cell import Cell, run_here, run_in_processes
from gkd_fast.study.methods import CONTROL, parse_methods
from gkd_fast.study.tables import summarise, write_report

Result = dict[str, Any]
_FILE = "study.json"

# What may change when a study goes on, for it changes no figure.
_FREE = {"output", "resume", "log_steps", "checkpoint_steps", "keep_checkpoints", "skip_teacher_check"} | {
    "workers",
    "prefetch",
    "cache",
}


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


def study(
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    sets: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Result:
    """Train a student by each method and seed, and as long without distillation, all with one teacher.

        content = gkd_fast.study(methods=["gkd", "fgd@20"], seeds=[0, 1, 2], preset="bccd", data_root="BCCD")

    Args:
        methods: to compare, as for ``gkd-fast study``; None: gkd, or those of the study that is gone on with.
        seeds: of the students; None: 0, 1 and 2, or those of the study that is gone on with.
        jobs: students trained at once.
        sets: by the names of several data sets the options of each, in addition to the others; ``output`` is then the
            folder of all.
        options: those of ``gkd-fast train`` by name, for every student.

    Returns:
        The content of ``study.json``, or of ``sets.json``, and, as ``folder``, where the study lies.

    Raises:
        TypeError: for an option that does not exist, or a value of another type.
        InputError: for input that cannot be used.
        RunError: at the end, if students failed; the others are finished.
    """
    for name in INSTEAD.keys() & options:
        raise TypeError(f"{name}: expected {INSTEAD[name]}, which a study has in its place")
    if sets is not None:
        return _study_of_sets(sets, {"methods": methods, "seeds": seeds, "jobs": jobs, **options})
    start = study_start({name: options.get(name) for name in FIRST})
    own = {"methods": methods, "seeds": seeds, "jobs": jobs}
    given = {name: value for name, value in own.items() if value is not None}
    settings, images = settled(validate_study(changed(start, options | given)), options.keys())
    folder = study_folder(settings)
    return {"folder": str(folder), **run_study(settings, folder, images)}


def _study_of_sets(sets: Mapping[str, Mapping[str, Any]], shared: dict[str, Any]) -> Result:
    from gkd_fast.study.sets import run_sets  # which runs studies of this module

    if not sets or shared.get("output") is None:
        raise InputError("study: expected sets with a name each, and output, the folder of all sets' studies")
    output = Path(shared["output"])
    studies = {}
    for name, own in sets.items():
        options = {key: value for key, value in {**shared, **own, "output": output / name}.items() if value is not None}
        start = study_start({first: options.get(first) for first in FIRST})
        studies[name] = settled(validate_study(changed(start, options)), options.keys())
    return {"folder": str(output), **run_sets(studies, output)}


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


def settled(study: StudyConfig, given: Collection[str]) -> tuple[StudyConfig, Images]:
    """The study with all its settings (see `gkd_fast.runs.settle`), and its images.

    Args:
        study: validated.
        given: names of the options that were given.
    """
    stored = stored_folder(study.config, _FILE) is not None
    config, images = settle(study.config, given, new=not stored)
    if not stored and config.data.val_seed is None:
        # Images that the shared teacher was trained on are never evaluated on.
        config = replace(config, "data", val_seed=study.seeds[0])
    return dataclasses.replace(study, config=config), images


def study_folder(study: StudyConfig) -> Path:
    """The folder of a study: the given one, or the next free ``runs/study-DATA-N``; to resume, the existing one.

    Raises:
        InputError: if the folder holds a study and ``--resume`` is not set, or one of other settings.
    """
    run = study.config.run
    if found := stored_folder(study.config, _FILE):
        _check_equal(found / _FILE, study.config)
        return found
    if run.output is None:
        return free_folder(f"study-{study.config.data.data}")
    for name, content in {_FILE: "study", "config.json": "run"}.items():
        if (run.output / name).exists():
            raise InputError(f"--output: {run.output} holds a {content}; expected a new folder, or --resume to go on")
    return run.output


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
    folder = holding(_FILE, output)
    if folder is None:
        if resume == "auto":
            return None
        raise InputError(f"--resume: expected a study in {output or f'{RUNS}/ or --output'}, found none")
    stored = _read(folder / _FILE)
    return StudyConfig(
        methods=tuple(stored["methods"]), seeds=tuple(stored["seeds"]), config=from_dict(stored["config"])
    )


@loading()
def run_study(study: StudyConfig, folder: Path, images: Images | None = None) -> Result:
    """Train all that is not finished, and write ``study.json``, ``study.md`` and ``ap.svg`` after every student.

    Args:
        study: settled and validated.
        folder: of the study, made here.
        images: of the study, where they are read already.

    Returns:
        The content of ``study.json``.

    Raises:
        InputError: before any training, for input that cannot be used.
        RunError: at the end, if students failed; the others are finished.
        Interrupted: after SIGTERM or SIGINT.
    """
    job = Job(study.config, images)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"methods": list(study.methods), "seeds": list(study.seeds), "config": to_dict(study.config)}
    if not (folder / _FILE).exists():
        write_json(folder / _FILE, settings)
    print(f"study folder: {folder}", flush=True)
    teacher = _teacher(job, folder)
    cells = _cells(study, folder)
    failures: dict[str, str] = {}

    def report() -> Result:
        results: Result = {CONTROL: {}, **{method: {} for method in study.methods}}
        for cell in cells:
            if cell.result.exists():
                results[cell.method][str(cell.seed)] = json.loads(cell.result.read_text())
        content = {**settings, "teacher": teacher, **summarise(results), "failures": failures}
        write_json(folder / _FILE, content)
        write_report(content, folder)
        return content

    def ended(cell: Cell, reason: str | None) -> None:
        name = f"{cell.method}, seed {cell.seed}"
        if reason is not None:
            failures[name] = reason
            print(f"warning: {name} failed: {reason}", file=sys.stderr, flush=True)
        else:
            print(f"{name}: AP {100 * json.loads(cell.result.read_text())['AP']:.1f}", flush=True)
        report()

    missing = [cell for cell in cells if not cell.result.exists()]
    if study.jobs == 1:
        run_here(missing, ended)
    else:
        run_in_processes(missing, study.jobs, ended)
    content = report()
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(
            f"{folder}: {len(failures)} of {len(cells)} students failed, {name}: {reason}; --resume trains them again"
        )
    return content


def _teacher(job: Job, folder: Path) -> Result:
    """The figures of the teacher, which is trained and evaluated unless that is done."""
    file = folder / "teacher" / "result.json"
    if not file.exists():
        teacher, figures = job.teacher(folder)
        if figures is None:
            job.frozen(teacher)
            file.parent.mkdir(exist_ok=True)
            write_json(file, job.evaluate(teacher))
    return json.loads(file.read_text())


def _cells(study: StudyConfig, folder: Path) -> list[Cell]:
    """Seed after seed, so that a study that is not finished compares what it can."""
    shared = replace(study.config, "run", output=None, resume="off", skip_teacher_check=True)
    trained = folder / "teacher" / "model.pt"
    if trained.exists():
        shared = changed(shared, {"teacher_checkpoint": trained})
    cells = []
    for seed in study.seeds:
        config = replace(shared, "run", seed=seed)
        cells.append(Cell(CONTROL, seed, config, folder / CONTROL / f"seed-{seed}"))
        for method in parse_methods(study.methods):
            own = dataclasses.replace(config, distill=method.applied(config.distill))
            cells.append(Cell(method.text, seed, own, folder / method.text / f"seed-{seed}"))
    return cells


def _check_equal(file: Path, config: Config) -> None:
    stored, given = to_dict(from_dict(_read(file)["config"])), to_dict(config)
    for section in SECTIONS:
        for name, value in given[section].items():
            before = stored[section][name]
            if value != before and name not in _FREE:
                start = ("seeds", "as the first ") if name == "seed" else (name.replace("_", "-"), "")
                raise InputError(f"--{start[0]}: expected {before} {start[1]}as in {file}, got {value}")


def _read(file: Path) -> Result:
    try:
        content = json.loads(file.read_text())
        return {key: content[key] for key in ("methods", "seeds", "config")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: expected the settings of a study; {error}") from error
