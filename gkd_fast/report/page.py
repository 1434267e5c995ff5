"""One self-contained page about one or several runs."""

from __future__ import annotations

from html import escape

from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.report.charts import Points, line_chart
from gkd_fast.report.document import document
from gkd_fast.report.knowledge import Trust, prototype_gallery, side_by_side
from gkd_fast.report.pictures import Gallery
from gkd_fast.report.runs import PHASES, Run
from gkd_fast.runs.data import prepare, read_images
from gkd_fast.runs.detector_file import load_detector


def page(runs: list[Run], *, pictures: bool, images: int, prototypes: int, score: float) -> str:
    """The whole document.

    Args:
        runs: finished runs.
        pictures: show prototypes, robust weights and detections, for which data and networks are needed.
        images: number of images with detections.
        prototypes: most prototypes of a class and level.
        score: least score of a detection that is shown.

    Raises:
        InputError: for data or a network that cannot be read.
    """
    links = "".join(f'<a href="#run-{at}">{escape(run.name)}</a>' for at, run in enumerate(runs))
    sections = [
        f"<h1>Distillation report</h1><p>{escape(_setting(runs))}</p>",
        f"<nav>{links}</nav>" if len(runs) > 1 else "",
        f"<h2>Average precision</h2>{scores(runs)}",
        f'<h2>Training</h2><div class="charts">{_comparison(runs)}</div>',
    ]
    for at, run in enumerate(runs):
        sections.append(f'<h2 id="run-{at}">{escape(run.name)}</h2><p>{escape(_networks(run))}</p>{_per_class(run)}')
        if pictures:
            sections.append(_pictures(run, f"run{at}", images, prototypes, score))
    return document("Distillation report", "".join(sections))


def scores(runs: list[Run]) -> str:
    """A table of the figures of every run's networks; the better of both students is bold."""
    figures = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mAP_2007", "mAP_2010")
    names = [name for name in figures if any(run.summary["student"].get(name, -1) >= 0 for run in runs)]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    rows = []
    for run in runs:
        for key, title in PHASES.items():
            cells = "".join(_cell(run, key, name) for name in names)
            rows.append(f"<tr><td>{escape(_label(runs, run, title))}</td>{cells}</tr>")
    return f'<div class="wide"><table class="scores"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(run: Run, key: str, name: str) -> str:
    value = run.summary[key].get(name, -1)
    other = {"student": "distilled", "distilled": "student"}.get(key)
    best = ' class="best"' if other and value > run.summary[other].get(name, -1) else ""
    return f"<td{best}>{_percent(value)}</td>"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value >= 0 else "&ndash;"


def _per_class(run: Run) -> str:
    tables = {key: run.summary[key].get("per_class", {}) for key in PHASES}
    head = "".join(f"<th>{title}</th>" for title in PHASES.values())
    rows = []
    for name in tables["student"]:
        cells = "".join(f"<td>{_percent(table.get(name, -1))}</td>" for table in tables.values())
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f'<h3>AP of each class</h3><table class="scores"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _comparison(runs: list[Run]) -> str:
    """The losses of all runs' students and teachers, and each run's distillation terms."""
    charts = [
        line_chart("Loss, all terms", _curves(runs, "loss")),
        line_chart("Loss of the classifier", _curves(runs, "loss_classifier", "loss_classification")),
    ]
    for run in runs:
        names = dict.fromkeys(
            name
            for line in run.metrics
            if line["phase"] == "distilled" and "event" not in line
            for name in line
            if name not in _NO_TERMS and not name.startswith("loss")
        )
        title = "Distillation terms" if len(runs) == 1 else f"Distillation terms of {run.name}"
        charts.append(line_chart(title, {name.removeprefix("gkd_"): run.curve("distilled", name) for name in names}))
    return "".join([*charts, line_chart("Learning rate", _curves(runs, "lr"))])


def _curves(runs: list[Run], *names: str) -> dict[str, Points]:
    """For each run and phase, the first of these figures that was logged, by the line's label."""
    return {
        _label(runs, run, title): next(filter(None, (run.curve(phase, name) for name in names)), [])
        for run in runs
        for phase, title in PHASES.items()
    }


def _label(runs: list[Run], run: Run, title: str) -> str:
    return title if len(runs) == 1 else f"{run.name}: {title}"


_NO_TERMS = {"phase", "step", "epoch", "lr", "images_per_second", "data_wait"}


def _pictures(run: Run, key: str, images: int, prototypes: int, score: float) -> str:
    students = {phase: load_detector(run.folder / phase / "model.pt") for phase in ("student", "distilled")}
    classes = students["distilled"].classes
    data = prepare(run.config, read_images(run.config, told=False).relabelled(classes))
    shown = {PHASES[phase]: checkpoint.build().eval() for phase, checkpoint in students.items()}
    sections = []
    bank_file = run.folder / "distilled" / "prototypes.pt"
    if bank_file.exists():
        bank = PrototypeBank.load(bank_file)
        train = Gallery(data.train.without_flip())
        sections.append(
            "<h3>Prototypes</h3><p>Instances of the training images that span both feature spaces, by class and "
            f"pyramid level.</p>{prototype_gallery(bank, train, prototypes)}"
        )
        teacher_file = run.config.model.teacher.checkpoint or run.folder / "teacher" / "model.pt"
        if teacher_file.exists():
            teacher = load_detector(teacher_file).build()
            trust = Trust(run, students["distilled"].build(), teacher, bank, data.val)
            sections.append(
                "<h3>Robust weights</h3><p>How much teacher and distilled student agree on validation instances: "
                f"1 is full trust.</p>{trust.section(Gallery(data.val), classes, 10)}"
            )
    sections.append(f"<h3>Detections</h3><p>Validation images, scores of at least {score:g}.</p>")
    sections.append(side_by_side(key, shown, data.val, images, score))
    return "".join(sections)


def _setting(runs: list[Run]) -> str:
    data = sorted({str(run.config.data.data_root or run.config.data.data) for run in runs})
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''} on {', '.join(data)}"


def _networks(run: Run) -> str:
    model, optim = run.config.model, run.config.optim
    teacher, student = (
        own.checkpoint or f"{own.backbone} (width {own.width:g})" for own in (model.teacher, model.student)
    )
    return (
        f"{model.detector}: {teacher} teaches {student}, "
        f"{optim.epochs} epochs of batches of {optim.batch_size}, seed {run.config.run.seed}."
    )
