"""What follows from sizes is made once, and forgotten one by one."""

from __future__ import annotations

import pytest

from gkd_fast.detectors import constants
from gkd_fast.detectors.constants import remembered


def test_the_oldest_is_forgotten_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "_known", {})
    monkeypatch.setattr(constants, "_MOST", 3)
    made = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    found = [remembered(key, lambda key=key: make(key)) for key in "abcabcdbcda"]
    assert found == list("ABCABCDBCDA")
    assert made == list("abcda")
