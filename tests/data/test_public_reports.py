"""Small inputs after public reports, each with what is right; a test for each kind is in test_findings.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gkd_fast.data import locate
from gkd_fast.data.describe import describe
from gkd_fast.errors import InputError

FOLDERS = (
    *("03-roboflow", "04-same-category-name", "05-roboflow-layout", "07-backslash-file-names", "09-string-ids"),
    *("10-duplicate-image-ids", "11-boxes-2px-outside", "13-gb2312-xml", "14-mac-dot-files", "15-split-with-flags"),
    *("17-split-with-suffix", "18-utf16-split", "19-exif", "21-12-bit-png", "23-val-lacks-category"),
    *("24-192-megapixels", "26-namespace", "27-bbox-missing", "28-bbox-empty", "30-normalised-boxes"),
    *("31-zero-boxes-dropped", "34-console-without-utf-8"),
)


@pytest.mark.parametrize("automatic", [False, True], ids=["as asked", "found by looking"])
@pytest.mark.parametrize("name", FOLDERS)
def test_public_report(real_data, name: str, automatic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root: Path = real_data("public_reports")
    rows = dict(line.split("\t", 1) for line in (root / "expect.tsv").read_text().splitlines())
    code, expected, forbidden = rows[name].split("\t")
    monkeypatch.chdir(root / name)
    words = shlex.split((root / name / "cmd").read_text())
    given = {key: words[words.index(f"--{key}") + 1] for key in ("data", "data-root", "train-split", "val-split")}
    splits = {} if automatic else {"train_split": given["train-split"], "val_split": given["val-split"]}
    try:
        source = locate(Path(given["data-root"]), "auto" if automatic else given["data"], **splits)
        train = source.read_train()
        val = source.read_val(train.classes, levels=train.levels)
        for dataset in (train, val):
            for index in range(len(dataset)):
                image, target = dataset[index]
                assert tuple(image.shape[1:]) == target["original_size"]
                assert image.float().std() > 5, "all but one colour"
        ended, text = "0", "\n".join([*describe("train", train), *describe("val", val)])
    except InputError as error:
        ended, text = "2", str(error)
        assert "\n" not in text
    assert code in ("any", ended), text
    assert expected == "-" or re.search(expected, text, re.IGNORECASE), text
    assert forbidden == "-" or not re.search(forbidden, text), text
