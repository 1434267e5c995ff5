"""The images of a run."""

from __future__ import annotations

import pytest
import torch

from gkd_fast.config import Config, replace
from gkd_fast.errors import InputError
from gkd_fast.runs.data import read_images


def scenes(**values: object) -> Config:
    return replace(Config(), "data", data="scenes", scenes_train=3, scenes_val=3, short_side=64, **values)


def test_splits_of_the_scenes_never_coincide() -> None:
    images = read_images(scenes())
    assert not torch.equal(images.train[0][0], images.val[0][0])
    more = read_images(replace(scenes(), "data", scenes_train=9))
    assert torch.equal(images.train[0][0], more.train[0][0])


def test_other_classes_than_those_of_the_scenes_are_refused() -> None:
    with pytest.raises(InputError, match="expected those of the scenes, disc"):
        read_images(scenes(classes=("cat",)))


def test_what_is_read_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    read_images(scenes())
    assert "drawn scenes, 3 to train on, 3 to evaluate on" in capsys.readouterr().out
    read_images(scenes(), told=False)
    assert not capsys.readouterr().out
