"""A study of several data sets: options of each, one table, what is checked before the first training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import tiny_run

import gkd_fast
from gkd_fast.cli import study
from gkd_fast.errors import InputError
from gkd_fast.study.sets import markdown, table_of

TINY = tiny_run(train=4, val=2, epochs=1)


def results(**by_method: list[float]) -> dict:
    """A finished study of seeds 0, 1, ... with these APs."""
    return {
        "results": {method: {str(seed): {"AP": ap} for seed, ap in enumerate(aps)} for method, aps in by_method.items()}
    }


STUDIES = {
    "cells": results(control=[0.4, 0.5], one=[0.52, 0.62], two=[0.45, 0.55]),
    "cards": results(control=[0.2, 0.3], one=[0.1, 0.2], two=[0.3, 0.34]),
}


def test_gain_and_place_of_every_method_on_every_set() -> None:
    table = table_of(STUDIES)
    assert set(table) == {"one", "two"}
    assert table["one"]["sets"]["cells"]["gain"] == pytest.approx(0.12)
    assert table["one"]["sets"]["cards"]["gain"] == pytest.approx(-0.1)
    assert table["two"]["sets"]["cards"]["gain"] == pytest.approx(0.07)
    assert [table["one"]["sets"][name]["place"] for name in STUDIES] == [1, 3]
    assert [table["two"]["sets"][name]["place"] for name in STUDIES] == [2, 1]
    assert table["one"]["gain"] == pytest.approx(0.01)
    assert table["one"]["place"] == 2
    assert (table["one"]["worst"], table["one"]["worst_set"]) == (pytest.approx(-0.1), "cards")
    assert table["two"]["sets"]["cards"]["half_width"] > 0


def test_the_best_mean_stands_first() -> None:
    rows = markdown({"studies": STUDIES, "table": table_of(STUDIES)}).splitlines()
    assert rows[-4] == "| method | cells | cards | mean gain | worst | mean place |"
    assert rows[-2].startswith("| two | +5.0 ± 0.0 (2) | +7.0")
    assert rows[-1].startswith("| one |")
    assert rows[-1].endswith("| +1.0 | -10.0 (cards) | 2.0 |")


def test_methods_are_compared_on_the_seeds_that_all_have() -> None:
    """A strong control of a seed that a method lacks must not count against it."""
    unfinished = results(control=[0.2, 0.6], one=[0.3])
    table = table_of({"cells": unfinished})
    assert table["one"]["sets"]["cells"]["gain"] == pytest.approx(0.1)
    assert table["one"]["sets"]["cells"]["place"] == 1


def test_a_method_without_students_on_a_set_is_left_out() -> None:
    table = table_of({"cells": STUDIES["cells"], "cards": results(control=[0.2], one=[0.3], two=[])})
    assert set(table) == {"one"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "sets"
    sets = ["--set", "dense", "--set", "sparse --scenes-train 6"]
    study.main([*TINY, "--methods", "gkd", "--seeds", "0", *sets, "--output", str(folder)])
    return folder


def test_every_set_is_a_study_with_options_of_its_own(finished: Path) -> None:
    content = json.loads((finished / "sets.json").read_text())
    counts = {name: own["config"]["data"]["scenes_train"] for name, own in content["studies"].items()}
    assert counts == {"dense": 4, "sparse": 6}
    for name in counts:
        alone = json.loads((finished / name / "study.json").read_text())
        assert alone["results"] == content["studies"][name]["results"]
    assert (finished / "sets.md").read_text().count("| gkd |") == 1


def test_python_goes_on_with_the_same_sets(finished: Path) -> None:
    before = json.loads((finished / "sets.json").read_text())
    content = gkd_fast.study(sets={"dense": {}, "sparse": {}}, resume="on", output=str(finished))
    assert content.pop("folder") == str(finished)
    assert content["table"] == before["table"]
    for name in before["studies"]:
        assert content["studies"][name]["results"] == before["studies"][name]["results"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "one", "--set", "one"], "--set: expected a name of its own"),
        (["--set", "'one"], "--set: expected"),
        (["--set", "one/two"], "--set: expected a name that a folder can have"),
        (["--set", "one", "--set", "two --seeds 3"], "--set two: expected the seeds 0 as of one, got 3"),
        (["--set", "one", "--set", "two --data voc --data-root missing"], "missing"),
    ],
)
def test_errors_come_before_any_training(arguments: list[str], message: str, tmp_path: Path) -> None:
    output = tmp_path / "sets"
    with pytest.raises(InputError, match=message):
        study.main([*TINY, "--methods", "gkd", "--seeds", "0", *arguments, "--output", str(output)])
    assert not list(tmp_path.rglob("model.pt"))


def test_several_sets_need_a_folder() -> None:
    with pytest.raises(InputError, match="--output: expected the folder of all sets' studies"):
        study.main([*TINY, "--set", "one"])
    with pytest.raises(InputError, match="output, the folder of all sets' studies"):
        gkd_fast.study(sets={"one": {}})
