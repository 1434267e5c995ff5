"""The figures of a study: means with intervals, differences seed by seed, a table and a chart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import fmean
from typing import Any

from gkd_fast.files import replacing
from gkd_fast.study.interval_chart import Row, interval_chart
from gkd_fast.study.methods import CONTROL
from gkd_fast.study.statistics import mean_interval

Result = dict[str, Any]
_FIGURES = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "mAP_2007": "VOC mAP (2007)", "mAP_2010": "VOC mAP (2010)"}
_NOTE = (
    "AP in percent; mean ± half width of the 95 % confidence interval over the seeds (Student's t); differences are "
    "taken seed by seed against the control, the student trained as long without distillation. An interval that holds "
    "0 shows no difference. The intervals are not corrected for the number of methods, and the seeds share one teacher."
)


def summarise(results: dict[str, dict[str, Result]]) -> Result:
    """Means and paired differences.

    Args:
        results: by method, then by seed, the figures of each finished student; the control among the methods.

    Returns:
        ``results`` as given, and ``summary``: by method and figure the mean, half_width and count of its seeds
        and, as ``difference``, those of the differences to the control of the same seed.
    """
    summary: Result = {}
    for method, by_seed in results.items():
        summary[method] = {}
        for figure in _figures(by_seed):
            values = {seed: result[figure] for seed, result in by_seed.items()}
            entry: Result = dataclasses.asdict(mean_interval(list(values.values())))
            pairs = [
                value - results[CONTROL][seed][figure] for seed, value in values.items() if seed in results[CONTROL]
            ]
            if method != CONTROL and pairs:
                entry["difference"] = dataclasses.asdict(mean_interval(pairs))
            summary[method][figure] = entry
    return {"results": results, "summary": summary}


def write_report(study: Result, folder: Path) -> None:
    """Write ``study.md`` and its chart ``ap.svg``.

    Args:
        study: content of ``study.json``.
        folder: of the study.
    """
    rows = [
        Row(
            method,
            [100 * result["AP"] for result in by_seed.values()],
            mean_interval([100 * result["AP"] for result in by_seed.values()]),
        )
        for method, by_seed in study["results"].items()
        if by_seed
    ]
    files = {"study.md": markdown(study)}
    if rows:
        files["ap.svg"] = interval_chart(rows, "AP, percent")
    for name, text in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def markdown(study: Result) -> str:
    """The tables of a study: means, differences to the control, and every seed.

    Args:
        study: content of ``study.json``.
    """
    results, summary = study["results"], study["summary"]
    figures = _figures(results[CONTROL]) or ["AP", "AP50", "AP75"]
    titles = [_FIGURES[figure] for figure in figures]
    lines = ["# Study", "", _NOTE, "", *head(["method", "seeds", *titles])]
    lines.append(line(["teacher", "", *(_percent(study["teacher"].get(figure)) for figure in figures)]))
    done = [method for method, by_seed in results.items() if by_seed]
    for method in done:
        entries = summary[method]
        lines.append(line([method, str(len(results[method])), *(_mean(entries[figure]) for figure in figures)]))
    lines += ["", "## Difference to the control", "", *head(["method", "pairs", *titles])]
    for method in done:
        entries = [summary[method][figure].get("difference") for figure in figures]
        if all(entries):
            lines.append(line([method, str(entries[0]["count"]), *(_mean(entry, "+") for entry in entries)]))
    lines += ["", "## AP of every seed", "", *head(["method", *map(str, study["seeds"])])]
    for method in done:
        values = [results[method].get(str(seed), {}).get("AP") for seed in study["seeds"]]
        lines.append(line([method, *map(_percent, values)]))
    lines += _planted(results)
    if done:
        lines += ["", "![AP of every method: seeds, mean and interval](ap.svg)"]
    if study["failures"]:
        lines += ["", "## Failed", "", *(f"- {name}: {reason}" for name, reason in study["failures"].items())]
    return "\n".join(lines)


def _planted(results: dict[str, dict[str, Result]]) -> list[str]:
    """How far robust weights told damaged instances from the others, where damage was planted."""
    lines = []
    for method, by_seed in results.items():
        found = [result["planted"] for result in by_seed.values() if "planted" in result]
        if found:
            means = [fmean(one[name] for one in found) for name in ("auc", "planted_weight", "weight")]
            lines.append(line([method, str(len(found)), *(f"{mean:.3f}" for mean in means)]))
    titles = ["method", "seeds", "AUC", "mean robust weight, damaged", "mean robust weight, others"]
    return lines and ["", "## Damage planted in the teacher's view", "", *head(titles), *lines]


def _figures(by_seed: dict[str, Result]) -> list[str]:
    return [name for name in _FIGURES if by_seed and all(name in result for result in by_seed.values())]


def _mean(entry: Result, sign: str = "") -> str:
    mean, half = 100 * entry["mean"], entry["half_width"]
    return f"{mean:{sign}.1f}" if half is None else f"{mean:{sign}.1f} ± {100 * half:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def head(cells: list[str]) -> list[str]:
    """The head of a table whose columns behind the first one hold numbers."""
    return [line(cells), line(["---"] + ["---:"] * (len(cells) - 1))]


def line(cells: list[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
