"""One self-contained page about one or several runs."""

from __future__ import annotations

from html import escape

from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.report.charts import Points, line_chart
from gkd_fast.report.knowledge import Trust, prototype_gallery, side_by_side
from gkd_fast.report.pictures import Gallery
from gkd_fast.report.runs import PHASES, Run
from gkd_fast.runs.data import prepare, read_images
from gkd_fast.runs.detector_file import load_detector

_STYLE = """
:root{--ink:#1c2330;--soft:#697386;--line:#e3e7ee;--paper:#f6f7fa;--card:#fff;--accent:#2a6fdb}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#2c3444;--paper:#11151d;--card:#191f2a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1200px;margin:0 auto;padding:32px 24px 80px}
h1{font-size:28px;margin:0 0 4px}h2{font-size:21px;margin:44px 0 12px;border-top:1px solid var(--line);padding-top:28px}
h3{font-size:17px;margin:28px 0 8px}
h4{font-size:15px;margin:0 0 6px}h5{font-size:13px;margin:10px 0 4px;color:var(--soft)}
p,small{color:var(--soft)}small{font-weight:400}nav a{color:var(--accent);margin-right:16px}
.card,.chart,.scores{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:0}
table{border-collapse:collapse}.wide{overflow-x:auto}
.scores{padding:0;border-collapse:separate;border-spacing:0}
.scores th,.scores td{padding:7px 16px;border-bottom:1px solid var(--line);text-align:right;
font-variant-numeric:tabular-nums}
.scores tr:last-child>*{border-bottom:0}.scores th:first-child,.scores td:first-child{text-align:left}
.scores th{color:var(--soft);font-weight:600}.best{font-weight:700}
.charts,.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px;margin-top:16px}
.chart figcaption{font-weight:600}.chart svg{width:100%;display:block}.chart text{font-size:11px;fill:var(--soft)}
.chart .grid{stroke:var(--line)}.chart polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:12px;height:3px;margin-right:6px;vertical-align:middle;border-radius:2px}
.gallery th{padding:4px 10px;color:var(--soft);font-size:13px;text-align:left;vertical-align:top}
.gallery td{padding:4px 10px;vertical-align:top}.crops{display:grid;grid-template-columns:repeat(4,44px);gap:3px}
img{border-radius:4px;display:block}.strip{display:flex;flex-wrap:wrap;gap:8px}.strip figure{margin:0}
.strip figcaption{font-size:12px;color:var(--soft);text-align:center;font-variant-numeric:tabular-nums}
.row{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin-bottom:14px}.row figure{margin:0}
.row figcaption{font-size:13px;color:var(--soft);margin-bottom:3px}.boxed{width:100%;display:block;border-radius:6px}
.boxed rect{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke}
.boxed text{paint-order:stroke;stroke:#000;stroke-width:1.5px;font-weight:600}
"""


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
    body = "".join(sections)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Distillation report</title><style>{_STYLE}</style><main>{body}</main></html>\n"
    )


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
