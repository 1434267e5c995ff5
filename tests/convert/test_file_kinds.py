"""Files of other formats, and where a trainer's file has its weights: right, or refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gkd_fast.detectors.foreign_files import read_foreign
from gkd_fast.errors import InputError

WEIGHTS = {"backbone.conv1.weight": torch.arange(6.0).view(2, 3)}
NAME, VALUE = next(iter(WEIGHTS.items()))


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x")
    return file.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


class DetectionModel(nn.Linear):
    """A network that somebody pickled whole."""


REFUSED: list[tuple[Callable[[], bytes], str]] = [
    (lambda: b"", "an empty file"),
    (safetensors, "a safetensors file"),
    (lambda: b"\x82\xa6params\x81", r"of an unknown format .*82 a6 70 61"),
    (lambda: b"\x08\x07\x12\x07pytorch", "of an unknown format"),
    (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    (lambda: b"\n<!DOCTYPE html><html>", "a web page"),
    (lambda: b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (lambda: b"\x1f\x8b\x08\x00", "a gzip archive"),
    (lambda: zipped("x.npy"), "a zip archive of x.npy"),
    (lambda: zipped("model/constants.pkl"), "a TorchScript archive"),
    (lambda: saved(WEIGHTS)[:-200], "a damaged file, or one that is not downloaded to its end"),
    (lambda: saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-9], "expected a readable checkpoint; .+"),
    (lambda: pickle.dumps({"x": np.zeros(9)})[:-9], "expected a readable checkpoint; .+"),
    (lambda: saved(DetectionModel(1, 1)), r"a whole DetectionModel, pickled; expected its state_dict\(\)"),
    (lambda: saved({"model": DetectionModel(1, 1), "epoch": 3}), "a whole DetectionModel, pickled"),
    (lambda: saved({"model": DetectionModel(1, 1), "best_fitness": 0.5}), "an Ultralytics file, which teaches through"),
    (lambda: saved([1]), "expected a checkpoint with weights, got list"),
    (lambda: saved({}), "found nothing"),
    (lambda: pickle.dumps({"model": {"names": np.array(["a", "b"]), "x": np.array([None])}}), "found model"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED)
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_other_files_are_refused_in_one_line(
    content: Callable[[], bytes], message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content())
    with pytest.raises(InputError, match=message) as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a checkpoint file, found a folder"):
        read_foreign(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"blobs": {"conv1_w": 1}}, "a Caffe2 Detectron file"),
        ({"train_args": {}, "model": None, "epoch": 1}, "an Ultralytics file, which teaches through"),
        (b"rubbish", "of an unknown format"),
        ([1], "expected a checkpoint with weights, got list"),
        ({"a": 1}, "expected weights under state_dict, model, .* or alone; found a"),
    ],
)
def test_files_without_weights_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        read_foreign(path)
    with pytest.raises(InputError, match=r"nowhere\.pth: expected a checkpoint file, found none"):
        read_foreign(tmp_path / "nowhere.pth")


ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}
ACCEPTED: list[Callable[[], bytes]] = [
    lambda: saved(WEIGHTS),
    lambda: saved({"state_dict": WEIGHTS, "epoch": 1}, _use_new_zipfile_serialization=False),
    lambda: saved({"model_state_dict": WEIGHTS, "optimizer": {"state": {0: torch.zeros(1)}}}),
    lambda: saved({"model": nn.ParameterDict({}) and None, "state_dict": dict(WEIGHTS)}),
    lambda: saved({"state_dict": {name: value.half() for name, value in WEIGHTS.items()}, 3: "x"}),
    lambda: saved({"model": {name: nn.Parameter(value) for name, value in WEIGHTS.items()}}),
    *(lambda protocol=protocol: pickle.dumps({"model": ARRAYS}, protocol) for protocol in range(2, 6)),
    lambda: pickle.dumps({"model": {name: value.astype(">f8") for name, value in ARRAYS.items()}}),
    lambda: pickle.dumps({"model": WEIGHTS}),
]


@pytest.mark.parametrize("content", ACCEPTED)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ""])
def test_weights_are_found_whatever_the_suffix(content: Callable[[], bytes], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content())
    read = read_foreign(path)
    assert list(read.state) == [NAME]
    assert read.state[NAME].dtype == torch.float32
    assert torch.equal(read.state[NAME], VALUE)


def test_other_weights_of_the_file_are_said(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": WEIGHTS, "ema_state_dict": {"module.x": VALUE, "steps": VALUE}}, path)
    assert read_foreign(path).notes == ("took the weights under state_dict, left out ema_state_dict (2 tensors)",)
