"""A study: methods x seeds on one data set with one teacher, and always the student trained as long without it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_fast.config import SECTIONS, Config, from_dict, replace, to_dict
from gkd_fast.errors import InputError, RunError
from gkd_fast.files import loading, write_json
from gkd_fast.options import changed
from gkd_fast.runs.data import Images
from gkd_fast.runs.folders import free_folder, stored_folder
from gkd_fast.runs.job import Job
from gkd_fast.runs.settle import settle
from gkd_fast.runs.start import FIRST
from gkd_fast.study.cell import Cell, run_here, run_in_processes
from gkd_fast.study.methods import CONTROL, parse_methods
from gkd_fast.study.settings import FILE, INSTEAD, StudyConfig, read_study, study_start, validate_study
from gkd_fast.study.tables import summarise, write_report

Result = dict[str, Any]

# What may change when a study goes on, for it changes no figure.
_FREE = {"output", "resume", "log_steps", "checkpoint_steps", "keep_checkpoints", "skip_teacher_check", "track"} | {
    "workers",
    "prefetch",
    "cache",
}


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


def settled(study: StudyConfig, given: Collection[str]) -> tuple[StudyConfig, Images]:
    """The study with all its settings (see `gkd_fast.runs.settle`), and its images.

    Args:
        study: validated.
        given: names of the options that were given.
    """
    stored = stored_folder(study.config, FILE)
    config, images = settle(study.config, given, new=stored is None)
    if config.data.val_seed is None:
        # Images that the shared teacher was trained on are never evaluated on.
        drawn = read_study(stored / FILE)["config"]["data"]["val_seed"] if stored else study.seeds[0]
        config = replace(config, "data", val_seed=drawn)
    return dataclasses.replace(study, config=config), images


def study_folder(study: StudyConfig) -> Path:
    """The folder of a study: the given one, or the next free ``runs/study-DATA-N``; to resume, the existing one.

    Raises:
        InputError: if the folder holds a study and ``--resume`` is not set, or one of other settings.
    """
    run = study.config.run
    if found := stored_folder(study.config, FILE):
        _check_equal(found / FILE, study.config)
        return found
    if run.output is None:
        return free_folder(f"study-{study.config.data.data}")
    for name, content in {FILE: "study", "config.json": "run"}.items():
        if (run.output / name).exists():
            raise InputError(f"--output: {run.output} holds a {content}; expected a new folder, or --resume to go on")
    return run.output


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
    if not (folder / FILE).exists():
        write_json(folder / FILE, settings)
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
        write_json(folder / FILE, content)
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
    stored, given = to_dict(from_dict(read_study(file)["config"])), to_dict(config)
    for section in SECTIONS:
        for name, value in given[section].items():
            before = stored[section][name]
            if value != before and name not in _FREE:
                start = ("seeds", "as the first ") if name == "seed" else (name.replace("_", "-"), "")
                raise InputError(f"--{start[0]}: expected {before} {start[1]}as in {file}, got {value}")
