"""The methods that a study compares."""

from __future__ import annotations

from gkd_fast.errors import InputError
from gkd_fast.methods import Method

CONTROL = "control"


def parse_methods(texts: tuple[str, ...]) -> tuple[Method, ...]:
    """Read the methods of a study.

    Raises:
        InputError: for none, for one that cannot be read, for two that are the same.
    """
    methods = tuple(Method.parse(text, "--methods") for text in texts if text != CONTROL)
    if not methods:
        raise InputError("--methods: expected at least one method beside the control, got none")
    if len(set(methods)) < len(methods):
        raise InputError(f"--methods: expected every method once, got {' '.join(texts)}")
    return methods
