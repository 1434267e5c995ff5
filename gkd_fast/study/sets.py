"""The same methods on several data sets, and one table of them: what holds on all sets, and what only on one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from gkd_fast.errors import InputError, RunError
from gkd_fast.files import replacing, write_json
from gkd_fast.runs.data import Images
from gkd_fast.runs.job import Job
from gkd_fast.study.methods import CONTROL
from gkd_fast.study.settings import StudyConfig
from gkd_fast.study.statistics import mean_interval
from gkd_fast.study.study import run_study, study_folder
from gkd_fast.study.tables import head, line

Result = dict[str, Any]
_FILE = "sets.json"
_NOTE = (
    "Gain: AP minus the control's of the same seed, in percent, mean ± half width of the 95 % confidence interval over "
    "the seeds (Student's t), with the method's place by mean AP among all methods and the control in brackets. Worst: "
    "the least of the gains. Only seeds that all methods of a set have are counted."
)


def check_sets(studies: Mapping[str, StudyConfig]) -> None:
    """Check that the studies compare the same.

    Raises:
        InputError: for a name that is no folder's, or sets of other methods or seeds than the first one's.
    """
    first_name, first = next(iter(studies.items()))
    for name, own in studies.items():
        if not name or Path(name).name != name or name.startswith("."):
            raise InputError(f"--set: expected a name that a folder can have, got {name!r}")
        for option in ("methods", "seeds"):
            expected, got = getattr(first, option), getattr(own, option)
            if got != expected:
                raise InputError(
                    f"--set {name}: expected the {option} {' '.join(map(str, expected))} as of {first_name}, "
                    f"got {' '.join(map(str, got))}"
                )


def run_sets(studies: Mapping[str, tuple[StudyConfig, Images]], folder: Path) -> Result:
    """Run a study of each data set, one after another, and write ``sets.json`` and ``sets.md`` after each.

    Args:
        studies: settled and validated, by the name of the set, and their images; each one's output is a folder of its
            own.
        folder: of the tables.

    Returns:
        The content of ``sets.json``: ``studies`` by name of the set, and the ``table``.

    Raises:
        InputError: for input that cannot be used, before the training on that set.
        RunError: at the end, if students failed; the others are finished.
    """
    check_sets({name: own for name, (own, _) in studies.items()})
    folders = {name: study_folder(own) for name, (own, _) in studies.items()}
    for own, images in studies.values():
        Job(own.config, images)  # all input is looked at before the first training
    finished: dict[str, Result] = {}
    failures: list[str] = []
    for name, (own, images) in studies.items():
        try:
            finished[name] = run_study(own, folders[name], images)
        except RunError as error:
            failures.append(str(error))
            finished[name] = json.loads((folders[name] / "study.json").read_text())
        content = {"studies": finished, "table": table_of(finished)}
        write_json(folder / _FILE, content)
        with replacing(folder / "sets.md") as temporary:
            temporary.write_text(markdown(content) + "\n")
    if failures:
        raise RunError("; ".join(failures))
    return content


def table_of(studies: Mapping[str, Result]) -> dict[str, Result]:
    """Gain and place of every method on every set, the mean of both over the sets, and the worst gain.

    Args:
        studies: content of each set's ``study.json``.

    Returns:
        By method: ``sets`` (by name: ``gain`` and ``half_width`` in AP as a fraction, ``seeds``, ``place``),
        ``gain`` and ``place`` (means over the sets), ``worst`` (least gain) and ``worst_set``. Methods without a
        finished student on some set are left out.
    """
    places = {name: _places(study["results"]) for name, study in studies.items()}
    methods = [m for m in next(iter(places.values())) if m != CONTROL and all(m in own for own in places.values())]
    table: dict[str, Result] = {}
    for method in methods:
        sets = {name: _on_set(studies[name]["results"], method, places[name]) for name in studies}
        worst = min(sets, key=lambda name: sets[name]["gain"])
        table[method] = {
            "sets": sets,
            "gain": fmean(own["gain"] for own in sets.values()),
            "place": fmean(own["place"] for own in sets.values()),
            "worst": sets[worst]["gain"],
            "worst_set": worst,
        }
    return table


def _places(results: Result) -> dict[str, int]:
    """The place of every method by its mean AP over the seeds that all have, the best first."""
    done = {method: by_seed for method, by_seed in results.items() if by_seed}
    common = _common_seeds(results)
    means = {method: fmean(by_seed[seed]["AP"] for seed in common) for method, by_seed in done.items() if common}
    return {method: 1 + sum(other > mean for other in means.values()) for method, mean in means.items()}


def _on_set(results: Result, method: str, places: dict[str, int]) -> Result:
    gains = [results[method][seed]["AP"] - results[CONTROL][seed]["AP"] for seed in _common_seeds(results)]
    found = mean_interval(gains)
    return {"gain": found.mean, "half_width": found.half_width, "seeds": found.count, "place": places[method]}


def _common_seeds(results: Result) -> list[str]:
    done = [by_seed for by_seed in results.values() if by_seed]
    return [seed for seed in results[CONTROL] if all(seed in by_seed for by_seed in done)]


def markdown(content: Result) -> str:
    """The table of ``sets.json``, the method of the greatest mean gain first."""
    names, table = list(content["studies"]), content["table"]
    lines = ["# Study of several data sets", "", _NOTE, ""]
    lines += head(["method", *names, "mean gain", "worst", "mean place"])
    for method, row in sorted(table.items(), key=lambda item: -item[1]["gain"]):
        cells = [_gain(row["sets"][name]) for name in names]
        worst = f"{100 * row['worst']:+.1f} ({row['worst_set']})"
        lines.append(line([method, *cells, f"{100 * row['gain']:+.1f}", worst, f"{row['place']:.1f}"]))
    return "\n".join(lines)


def _gain(own: Result) -> str:
    half = "" if own["half_width"] is None else f" ± {100 * own['half_width']:.1f}"
    return f"{100 * own['gain']:+.1f}{half} ({own['place']})"
